"""The tensors behind an EMA: every track's averages, kept in step with a model that may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from polyak.errors import ConfigError, PlanError
from polyak.rules import Decay
from polyak.torch.clone import clone_onto
from polyak.torch.engines.contract import Pair
from polyak.torch.engines.ensemble import Ensemble
from polyak.torch.engines.tally import Tally
from polyak.torch.plan import Entry, Patterns, Plan, Selection, unwrap
from polyak.torch.state import Loaded, State, fill
from polyak.torch.storage import Settings, outside_inference_mode, stored
from polyak.torch.swap import Swap
from polyak.torch.track import Track, follow


class Averages:
    """One model's plan, the averages of each track, the copied buffers, and the engine that runs them.

    Args:
        model: the model to follow.
        decays: the tracks, by name.
        selection: which of its tensors.
        settings: how they are kept and updated.

    Raises:
        ConfigError: the model is no module, or a glob matches nothing.
        PlanError: nothing to average.
    """

    def __init__(
        self,
        model: nn.Module,
        decays: Mapping[str, Decay],
        selection: Selection,
        settings: Settings,
    ) -> None:
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"model is a {type(model).__name__}: give the nn.Module itself, not its parameters."
            )
        self.model, self.settings = model, settings
        self.tracks = {name: Track(name, decay, {}) for name, decay in decays.items()}
        self.tally = Tally()
        self._guards = 0  # optimizers that call before_step
        self._selection = selection
        self.copies: dict[str, Tensor] = {}
        self.plan = Plan(model, selection)
        selection.check_against(self.plan.names())
        self._engines = Ensemble((), (), settings, self.tally)
        self._adopt(self.plan, {}, 0)

    @property
    def first(self) -> Track:
        """The track meant when none is named."""
        return next(iter(self.tracks.values()))

    def held(self, track: Track) -> dict[str, Tensor]:
        """What a track holds in place of the model's tensors: its averages and the copied buffers."""
        return track.tensors | self.copies

    def shown(self, track: Track) -> dict[str, Tensor]:
        """The same for a model to compute with: all digits where it has to be cast anyway."""
        held = self.held(track)
        for name in track.lows:
            if self.plan.entries[name].live.dtype != held[name].dtype:
                held[name] = track.value(name)
        return held

    def follow(self, step: int) -> None:
        """Notice what changed in the model since the plan was made; newcomers join at ``step``.

        Raises:
            PlanError: an averaged tensor has another shape now. Nothing is changed then.
        """
        if self.plan.stale():
            plan = self._planned()
            self._adopt(plan, follow(self.plan.entries, plan.entries, self.first.tensors), step)

    def restart(self, names: Patterns, step: int) -> None:
        """Start the tensors that match again from the model, or with None all of them and the schedules."""
        if names is None:
            plan = Plan(self.model, self._selection)
            for track in self.tracks.values():
                track.restart(step)
            self._adopt(plan, {}, 0)
            return
        plan, chosen = self._planned(), Selection.of(names, None, "auto")
        chosen.check_against(plan.names())
        kept = {name: average for name, average in self.first.tensors.items() if not chosen.takes([name])}
        self._adopt(plan, follow(self.plan.entries, plan.entries, kept), step)

    def update(self, betas: Sequence[float], step: int) -> None:
        """θ into every average with the composed decay of each track, and buffers copied."""
        self._engines.update(betas, step)

    def settle(self) -> None:
        """Finish updates that run beside the training: the averages are about to be read."""
        self._engines.wait()

    def guard(self, guards: int) -> None:
        """One more or less optimizer calls ``before_step``."""
        self._guards += guards
        self._engines.guard(self._guards > 0)

    def before_step(self) -> None:
        """θ is about to be written by an optimizer."""
        self._engines.before_step()

    def restore(self, loaded: Loaded, state: State) -> None:
        """Take over a state that was read and checked."""
        self.settle()
        for name, track in loaded.tracks.items():
            fill(track.tensors, track.lows, state["tracks"][name])
        fill(self.copies, {}, {"tensors": state["copies"]})
        self.tracks.update(loaded.tracks)
        self.tally = loaded.tally
        self.prepare()

    def swap_in(self, track: Track, undo: ExitStack) -> None:
        """Put a track's averages into the live model; unwinding ``undo`` takes them out again."""
        if track.name not in self._swaps:
            self._swaps[track.name] = Swap(self.plan, self.held(track))
        self._swaps[track.name].enter(self.shown(track), undo)

    def prepare(self) -> None:
        """Make the engines ready for the present plan, tracks and tally."""
        self._swaps: dict[str, Swap] = {}
        tracks = self.tracks.values()
        pairs = [
            Pair(
                e.name,
                e.live,
                tuple([t.tensors[e.name] for t in tracks]),
                tuple([t.lows[e.name] for t in tracks if e.name in t.lows]),
                e.kind == "buffer",
            )
            for e in self.plan.having("average")
        ]
        copies = [(self.copies[e.name], e.live) for e in self.plan.having("copy")]
        self._engines = Ensemble(pairs, copies, self.settings, self.tally)
        self._engines.guard(self._guards > 0)

    @property
    def engine(self) -> str:
        """The engines in use, and why no faster ones are."""
        return self._engines.name

    def module_of(self, track: Track) -> nn.Module:
        """The module on a track's tensors, made when first asked for."""
        if track.module is None:
            held = self.held(track)
            places = {id(t): held.get(e.name, t) for e in self.plan.entries.values() for t in e.tensors}
            track.module = clone_onto(self.model, places)
        return track.module

    def copy_to(self, model: nn.Module | None, track: Track) -> None:
        """Write a track's tensors over a model's, all or none.

        Raises:
            PlanError: one of them is missing there or has another shape.
        """
        plan = self.plan if model is None else Plan(model, Selection.of(None, None, "auto"))
        places = {name: e.tensors for e in plan.entries.values() for name in (e.name, *e.aliases)}
        held = self.shown(track)
        for name, tensor in held.items():
            if name not in places or places[name][0].shape != tensor.shape:
                found = f"is {tuple(places[name][0].shape)} there" if name in places else "is not there"
                raise PlanError(
                    f"{name} {tuple(tensor.shape)} {found}: copy_to needs a model of the same structure."
                )
        with torch.no_grad():
            for name, tensor in held.items():
                for place in places[name]:
                    place.copy_(tensor)

    def _planned(self) -> Plan:
        return Plan(self.model, self._selection, self.plan.having("average"))

    def _adopt(self, plan: Plan, heirs: Mapping[str, str], step: int) -> None:
        """Take a plan over: heirs keep their averages, newcomers start at the model's present values."""
        averaged = plan.having("average")
        if not averaged:
            raise PlanError(
                f"{type(unwrap(self.model)).__name__} has nothing to average: every parameter is frozen or "
                "left out. Unfreeze some (requires_grad_(True)) or widen include=."
            )
        self.settle()
        for track in self.tracks.values():
            track.adopt(*self._tensors(averaged, track, heirs), heirs, step)
        self.plan = plan
        with outside_inference_mode():
            self.copies = {entry.name: self._copy(entry) for entry in plan.having("copy")}
            self.prepare()

    def _copy(self, entry: Entry) -> Tensor:
        """The copy kept so far where it still fits, so that a module made on it goes on following."""
        fresh = stored(entry.live, entry.live.dtype, self.settings.device)
        kept = self.copies.get(entry.name)
        if kept is None or (kept.dtype, kept.shape, kept.device) != (fresh.dtype, fresh.shape, fresh.device):
            return fresh
        return kept.copy_(fresh)

    def _tensors(
        self, entries: Sequence[Entry], track: Track, heirs: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        lows: dict[str, Tensor] = {}
        taken: set[str] = set()
        for entry in entries:
            source = heirs.get(entry.name)
            if source is None:
                average, low = self.settings.stored(entry.live)
            else:  # of tensors that came apart, the first keeps the memory they shared
                average, low = self._moved(track, source, entry, copy=source in taken)
                taken.add(source)
            tensors[entry.name] = average
            if low is not None:
                lows[entry.name] = low
        return tensors, lows

    def _moved(self, track: Track, source: str, entry: Entry, copy: bool) -> tuple[Tensor, Tensor | None]:
        device = self.settings.device or entry.live.device
        low = track.lows.get(source)
        with outside_inference_mode():
            average = track.tensors[source].to(device, copy=copy)
            return average, None if low is None else low.to(device, copy=copy)
