"""The tensors behind an EMA: every track's averages, synchronised with a model that may change.

``AverageSet`` decides what happens; the parts in ``framework``, which torch and Paddle implement, do it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from polyak._core.averaged_module import AveragedModule, ModelT
from polyak._core.nonfinite import NonFinitePolicy
from polyak._core.swap_guard import Exchange, finished
from polyak._core.tensor_map import (
    Patterns,
    Selection,
    TensorEntry,
    TensorMap,
    as_patterns,
    check_patterns,
    match_averages,
    refuse_unmatched,
)
from polyak._core.tensors import T, TensorOps, fill
from polyak._core.track import Track
from polyak._core.unfit import UnfitAverages
from polyak._core.updater import Skipped
from polyak._core.written_tensors import WrittenTensors
from polyak.errors import PlanError
from polyak.schedules import ByName, Decay

if TYPE_CHECKING:
    from polyak._core.framework import Models, Swapper, TensorStore, UpdaterFactory
    from polyak._core.load_state import Loaded


class AverageSet(Generic[ModelT, T]):
    """One model's tensor map, the averages of each track, and the copied buffers.

    Args:
        model: the model to follow.
        decays: the tracks, by name.
        selection: the tensors to average.
        policy: what to do with non-finite elements of θ.
        models, store, updaters, swapper: the framework's parts; see ``framework``.

    Raises:
        ConfigError: a glob matches nothing, or a ``ByName`` leaves a tensor without a decay.
        PlanError: nothing to average.
        NonFiniteError: θ₀ is not finite, under "raise".
    """

    def __init__(
        self,
        model: ModelT,
        decays: Mapping[str, Decay | ByName],
        selection: Selection,
        policy: NonFinitePolicy,
        models: Models[ModelT, T],
        store: TensorStore[T],
        updaters: UpdaterFactory[T],
        swapper: Swapper[T],
    ) -> None:
        self.model = model
        self._models, self._store, self.updaters, self._swapper = models, store, updaters, swapper
        self.unfit = UnfitAverages[T](policy)
        self.tracks = {name: Track(name, decay, self.ops.value_of) for name, decay in decays.items()}
        self._selection = selection
        self.copies: dict[str, T] = {}
        self.updater = updaters.make((), (), {}, (), (0, {}))
        self.plan = self._map(())
        selection.check_against(self.plan.entries)
        for decay in decays.values():
            if isinstance(decay, ByName):
                check_patterns(decay, self.plan)
        self._adopt(self.plan, {}, 0)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but engines, which store addresses: a copy makes its own at its next use.

        Not at once, since a model that owns its EMA is still incomplete then.
        """
        self.synchronize()
        return {key: self.__dict__[key] for key in self._copied} | {"skipped": self.updater.skipped()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = state["_models"].ops.duplicate  # multiprocessing sends tensors by sharing their memory
        for track in state["tracks"].values():
            track.tensors = {name: own(tensor) for name, tensor in track.tensors.items()}
            track.residuals = {name: own(tensor) for name, tensor in track.residuals.items()}
        state["copies"] = {name: own(tensor) for name, tensor in state["copies"].items()}
        self._begin(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> AverageSet[ModelT, T]:
        """As from a pickle, but each average is copied once: the memory of a deep copy is its own."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin._begin(deepcopy(self.__getstate__(), memo))
        return twin

    def _begin(self, state: dict[str, Any]) -> None:
        skipped = state.pop("skipped")
        vars(self).update(state)
        self.updater = self.updaters.make((), (), self.copies, (), skipped)
        self._written, self.intact = WrittenTensors[T]({}, self.ops), bool

    # The state of a copy; the model first, so that the plan's tensors are those of its copy.
    _copied = (
        *("model", "_models", "_store", "updaters", "_swapper", "tracks", "copies", "plan"),
        *("_selection", "unfit"),
    )

    @property
    def ops(self) -> TensorOps[T]:
        """The framework's tensor operations."""
        return self._models.ops

    def exchange(self, track: Track[T]) -> Exchange:
        """The exchange that swaps a track's averages into the live model and out again."""
        averages, shown = self.tensors_of(track), self.eval_tensors(track)
        return Exchange(self._swapper.swap(self.plan, track.name, averages, shown), track.name, self)

    def extra_states(self) -> dict[str, T]:
        """What modules save besides parameters and buffers."""
        return self._models.extra_states(self.model)

    def class_name(self) -> str:
        """The model's class, without wrappers."""
        return self._models.class_name(self.model)

    def record(self) -> None:
        """Record an update into the CUDA graph that is being captured.

        Raises:
            ConfigError: not all of it can be captured.
            PlanError: tensors moved since the last update.
        """
        if not self.intact():
            raise PlanError(
                "the model's tensors or averages moved after the last update: let a step run, then capture."
            )
        self.updaters.record(self.plan)

    def synchronize(self) -> None:
        """Wait for updates in flight: the averages are about to be read."""
        self.updater.wait()

    @property
    def first(self) -> Track[T]:
        """The default track."""
        return next(iter(self.tracks.values()))

    def tensors_of(self, track: Track[T]) -> dict[str, T]:
        """A track's averages and the copied buffers, by name."""
        return track.tensors | self.copies

    def eval_tensors(self, track: Track[T]) -> dict[str, T]:
        """The same for evaluation: two-part averages are joined where they have to be cast anyway."""
        held = self.tensors_of(track)
        for name in track.residuals:
            if self.plan.entries[name].live.dtype != held[name].dtype:
                held[name] = track.value(name)
        return held

    def sync_with_model(self, step: int) -> None:
        """Follow changes of the model since the plan was made; new tensors join at ``step``.

        Raises:
            PlanError: an averaged tensor changed its shape, or an average lost its memory. Nothing is
                changed then.
        """
        if self.intact():
            return
        stale = self.plan.stale()
        if not stale and self.intact():  # sharded parameters that had made way for whole ones are back
            return
        plan = self._map(self.plan.having("average")) if stale else None
        self._written.check()
        if plan is not None:
            self._adopt(plan, match_averages(self.plan.entries, plan.entries, self.first.tensors), step)
        else:
            self.synchronize()
            self._prepare(self.updater.skipped())

    def fill_nonfinite(self) -> None:
        """Set elements of the averages that are still NaN or infinite to θ."""
        self.synchronize()
        self.unfit.fill(self.tracks.values(), self.plan.entries, self.ops)

    def restart(self, names: Patterns, step: int) -> Callable[[], None]:
        """Restart matching tensors from the model; with None, all of them and the schedules.

        Returns:
            A function that does it, and may be called twice; nothing is changed before.
        """
        if names is None:
            plan = self._map(())
            averaged = self._averaged(plan)
            self.unfit.check_start(averaged, self._store, self.ops)  # before the old averages are given up

            def start() -> None:
                for track in self.tracks.values():
                    track.restart(step)
                self._adopt(plan, {}, 0)

            return start
        plan = self._map(self.plan.having("average"))
        patterns = as_patterns(names)
        refuse_unmatched("names", patterns, plan.names("average"), "averaged tensor")
        chosen = Selection.of(patterns, None, "auto")
        kept = {name: average for name, average in self.first.tensors.items() if not chosen.takes([name])}
        return partial(self._adopt, plan, match_averages(self.plan.entries, plan.entries, kept), step)

    def with_room_for(self, names: Collection[str], step: int) -> tuple[TensorMap[T], dict[str, Track[T]]]:
        """The plan and tracks in which frozen parameters of these names are averaged; changes nothing."""
        frozen = [entry for entry in self.plan.frozen() if entry.name in names]
        if not frozen:
            return self.plan, dict(self.tracks)
        plan = self._map([*self.plan.having("average"), *frozen])
        joined = dict.fromkeys([entry.name for entry in frozen], step) if step else {}
        heirs, tracks = {name: name for name in self.first.tensors}, dict[str, Track[T]]()
        for name, track in self.tracks.items():
            averaged = plan.having("average")
            tensors, residuals = self._tensors(averaged, track, heirs)
            tracks[name] = replace(
                track,
                tensors=tensors,
                residuals=residuals,
                joined=track.joined | joined,
                patterns=track.patterns_after(averaged, heirs),
                module_cache=None,
            )
        return plan, tracks

    def state_form(self, plan: TensorMap[T]) -> Callable[[str, T], T]:
        """A function of the name and the tensor of an average that gives the tensor for a state."""

        def form(name: str, tensor: T) -> T:
            entry = plan.entries.get(name)
            return tensor if entry is None else self._models.in_state(entry, tensor)

        return form

    def local(self, loaded: Loaded[T], plan: TensorMap[T]) -> Loaded[T]:
        """The loaded state with this process's parts of the tensors that fit."""

        def part(name: str, tensor: T) -> T | None:
            entry = plan.entries.get(name)
            if entry is None or entry.role == "share" or tuple(tensor.shape) != entry.shape:
                return None
            return self._models.from_state(entry, tensor)

        return replace(loaded, state=loaded.state.changed(part))

    def restore(self, loaded: Loaded[T], plan: TensorMap[T], tracks: Mapping[str, Track[T]]) -> None:
        """Load a state that was checked against this plan and these tracks."""
        self.synchronize()
        for name, track in loaded.tracks.items():
            theirs = loaded.state.tracks[name]
            fill(track.tensors, track.residuals, theirs.tensors, theirs.residuals, self.ops)
            for newcomer in loaded.joining:
                live = plan.entries[newcomer].live
                self.ops.put(track.tensors[newcomer], track.residuals.get(newcomer), live)
        fill(self.copies, {}, loaded.state.copies, {}, self.ops)
        self.plan = plan
        self.tracks.update({**tracks, **loaded.tracks})
        self._prepare(loaded.state.skipped)
        self._look(list(self.first.tensors))
        for track in self.tracks.values():
            if track.module_cache is not None:
                track.module_cache.forget()

    def module_of(self, track: Track[T], step: int) -> ModelT:
        """The model on a track's tensors, built at first use."""
        if track.module_cache is None or not track.module_cache.intact():
            track.module_cache = self._build_module(track, step)
        track.module_cache.sync_with_model(step)
        return track.module_cache.module

    def _build_module(self, track: Track[T], step: int) -> AveragedModule[ModelT, T]:
        held = self.tensors_of(track)
        rest = [entry for name, entry in self.plan.entries.items() if name not in held]
        own = {entry.name: self._store.duplicate(entry.live) for entry in rest}
        tensors = held | own
        places = {id(t): tensors[e.name] for e in self.plan.entries.values() for t in e.tensors}
        module, others = self._models.clone(self.model, places)
        follows = [(own[entry.name], entry.live) for entry in rest] + others
        plan = self._models.map_of_other(module, self._selection)
        return AveragedModule(module, plan, tensors, follows, step, self.ops)

    def copy_to(self, model: ModelT | None, track: Track[T]) -> None:
        """Overwrite a model's tensors with a track's, all or none; in another model the frozen ones too.

        Raises:
            PlanError: one of them is missing there or has another shape.
        """
        plan = self.plan if model is None else self._models.map_of_other(model, self._selection)
        places = {name: e for e in plan.entries.values() for name in e.names}
        held = self.eval_tensors(track)
        if model is not None:  # what the live model has as it is
            rest = [e for e in self.plan.entries.values() if e.name not in held and e.persistent]
            held |= {e.name: e.live for e in rest if self._selection.takes(e.names)}
        for name in held:
            mine = self.plan.entries[name]
            if name not in places or places[name].shape != mine.shape:
                found = f"is {places[name].shape} there" if name in places else "is missing there"
                raise PlanError(f"{name} {mine.shape} {found}: copy_to needs a model of the same structure.")

        def write() -> None:
            for name, tensor in held.items():
                self._models.copy_over(self.plan.entries[name], tensor, places[name])

        finished(write)

    def _map(self, averaged: Sequence[TensorEntry[T]]) -> TensorMap[T]:
        return self._models.tensor_map(self.model, self._selection, averaged)

    def _adopt(self, plan: TensorMap[T], heirs: Mapping[str, str], step: int) -> None:
        """Switch to a new plan: tensors in ``heirs`` keep their averages, new ones start at θ."""
        averaged = self._averaged(plan)
        names = [entry.name for entry in averaged]
        newcomers = [entry for entry in averaged if entry.name not in heirs]
        self.unfit.check_start(newcomers, self._store, self.ops)
        self.synchronize()
        made = [
            (
                track,
                *self._tensors(averaged, track, heirs),
                track.joined_after(names, heirs, step),
                track.patterns_after(averaged, heirs),
            )
            for track in self.tracks.values()
        ]

        def take_over() -> None:
            for track, tensors, residuals, joined, patterns in made:
                track.tensors, track.residuals, track.joined = tensors, residuals, joined
                track.patterns, track.module_cache = patterns, None
            self.plan = plan
            unfit = [name for name in self.unfit.names if name in names]
            self._look([entry.name for entry in newcomers] + unfit)
            buffers = plan.having("copy")
            self.copies = {e.name: self._store.buffer(e.live, self.copies.get(e.name)) for e in buffers}
            self._prepare(self.updater.skipped())

        finished(take_over)

    def _prepare(self, skipped: Skipped) -> None:
        averaged, copied = self.plan.having("average"), self.plan.having("copy")
        self._swapper.forget()
        self.updater = self.updaters.make(averaged, copied, self.copies, list(self.tracks.values()), skipped)
        self._written = WrittenTensors(self._written_tensors(), self.ops)
        # Whether model and averages are still at the updater's addresses: checked before every update.
        self.intact = self._written.unchanged_with(self.plan)

    def _written_tensors(self) -> dict[str, T]:
        """The tensors that an update writes, by their names in errors."""
        kept = {f"the copy of {name}": copy for name, copy in self.copies.items()}
        for track in self.tracks.values():
            kept |= {f"the average {track.name!r} of {name}": t for name, t in track.tensors.items()}
            kept |= {f"the low part of {track.name!r} of {name}": t for name, t in track.residuals.items()}
        return kept

    def _look(self, names: Sequence[str]) -> None:
        self.unfit.look(names, self.tracks.values(), self.ops)

    def _averaged(self, plan: TensorMap[T]) -> list[TensorEntry[T]]:
        if averaged := plan.having("average"):
            return averaged
        raise PlanError(
            f"{self.class_name()} has nothing to average: every parameter is frozen or left out. "
            "Unfreeze some or widen include=."
        )

    def _tensors(
        self, entries: Sequence[TensorEntry[T]], track: Track[T], heirs: Mapping[str, str]
    ) -> tuple[dict[str, T], dict[str, T]]:
        tensors: dict[str, T] = {}
        residuals: dict[str, Any] = {}
        taken: set[str] = set()
        for entry in entries:
            source = heirs.get(entry.name)
            if source is None:
                tensors[entry.name], residuals[entry.name] = self._store.initial(entry.live)
                continue
            again = source in taken  # of tensors that came apart, the first keeps the memory they shared
            taken.add(source)
            tensors[entry.name] = self._store.on_device(track.tensors[source], entry.live, again)
            low = track.residuals.get(source)
            residuals[entry.name] = None if low is None else self._store.on_device(low, entry.live, again)
        return tensors, {name: low for name, low in residuals.items() if low is not None}
