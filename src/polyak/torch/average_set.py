"""One model's averages as torch tensors, and the engines that update them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from polyak._core import average_set as core
from polyak._core.swap_guard import Exchange
from polyak._core.tensor_map import Selection, TensorEntry
from polyak._core.tensors import TensorOps
from polyak._core.track import Track
from polyak._core.updater import Skipped
from polyak.errors import ConfigError, PlanError
from polyak.schedules import Decay
from polyak.torch import tensors
from polyak.torch._engines.base import Pair
from polyak.torch._engines.nonfinite_counter import NonFiniteCounter
from polyak.torch._engines.updater import Graph, Updater
from polyak.torch.clone import clone_onto
from polyak.torch.store import Settings, laid_out_as, outside_inference_mode, stored
from polyak.torch.swap import Swap
from polyak.torch.tensor_map import TensorMap, unwrap, walk


class AverageSet(core.AverageSet[nn.Module, Tensor]):
    """See ``core.AverageSet``.

    Args:
        model: the model to follow.
        decays: the tracks, by name.
        selection: which of its tensors.
        settings: how they are kept and updated.

    Raises:
        ConfigError: the model is no module, or a glob matches nothing.
        PlanError: nothing to average.
    """

    ops: TensorOps[Tensor] = tensors
    updater: Updater
    _guards = 0  # optimizers that call before_step
    # Graphs hold addresses of engines' tables and of averages: all of them stay as long as this does.
    _captured: tuple[Updater, ...] = ()

    def __init__(
        self, model: nn.Module, decays: Mapping[str, Decay], selection: Selection, settings: Settings
    ) -> None:
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"model is a {type(model).__name__}: give the nn.Module itself, not its parameters. "
                "Layers of PaddlePaddle go to polyak.paddle.EMA."
            )
        self.settings = settings
        super().__init__(model, decays, selection, settings.policy)

    def planned(self, selection: Selection, averaged: Sequence[TensorEntry[Tensor]] = ()) -> TensorMap:
        return TensorMap(self.model, selection, averaged)

    def plan_of(self, model: nn.Module) -> TensorMap:
        return TensorMap(model, self._selection)

    def extra_states(self) -> dict[str, Tensor]:
        """What ``get_extra_state`` gives; a safetensors file holds what is a tensor."""
        states = {
            f"{prefix}_extra_state": module.get_extra_state()
            for prefix, module in walk(self.model)
            if type(module).get_extra_state is not nn.Module.get_extra_state
        }
        left = [name for name, state in states.items() if not isinstance(state, Tensor)]
        if left:
            warnings.warn(
                f"{', '.join(left[:8])}: not in the file, which holds tensors only. Load it with "
                "load_state_dict(…, strict=False), or save ema.module.state_dict() with torch.save.",
                stacklevel=4,
            )
        return {name: state for name, state in states.items() if isinstance(state, Tensor)}

    def stored(self, live: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.settings.stored(live)

    def on_device(self, tensor: Tensor, entry: TensorEntry[Tensor], copy: bool) -> Tensor:
        with outside_inference_mode():
            there = self.settings.device or entry.live.device
            return laid_out_as(entry.live, tensor).to(there, copy=copy)

    def copied(self, entry: TensorEntry[Tensor], kept: Tensor | None) -> Tensor:
        fresh = stored(entry.live, entry.live.dtype, self.settings.device)
        if kept is None or _form(kept) != _form(fresh):
            return fresh
        with outside_inference_mode():  # so that a module made on it goes on following
            return kept.copy_(fresh)

    def make_updater(
        self, averaged: Sequence[TensorEntry[Tensor]], copied: Sequence[TensorEntry[Tensor]], skipped: Skipped
    ) -> Updater:
        self._swaps: dict[str, Swap] = {}
        tracks = self.tracks.values()
        pairs = [
            Pair(
                e.name,
                e.live,
                tuple([t.tensors[e.name] for t in tracks]),
                tuple([t.residuals[e.name] for t in tracks if e.name in t.residuals]),
                e.kind == "buffer",
            )
            for e in averaged
        ]
        copies = [(self.copies[e.name], e.live) for e in copied]
        with outside_inference_mode():
            updater = Updater(pairs, copies, self.settings, NonFiniteCounter(*skipped))
        updater.guard(self._guards > 0)
        return updater

    def record(self) -> None:
        if not self.intact():
            raise PlanError(
                "the model's tensors or averages moved after the last update: let a step run, then capture."
            )
        self._refuse_host_buffers()
        self.updater.record()
        if self.updater not in self._captured:
            self._captured += (self.updater,)

    def check_captured(self) -> None:
        """Refuse to replay a graph that holds no update of the present updater.

        Raises:
            PlanError: none was captured.
        """
        if not self.intact() or self.updater not in self._captured:
            raise PlanError(
                "no update of the model's present tensors was captured: capture a graph in which "
                "ema.update() is called, and again whenever the model's tensors have moved, a state was "
                "loaded or the average was reset."
            )

    def replay(self, graph: Graph, betas: Sequence[float], step: int) -> None:
        """The update that ``graph`` holds, with these decays, and all else in the graph."""
        self.updater.replay(graph, betas, step)

    def _refuse_host_buffers(self) -> None:
        devices = {entry.live.device for entry in self.plan.having("average")}
        for entry in self.plan.having("copy"):
            if entry.live.device not in devices:
                raise ConfigError(
                    f"{entry.name} is a buffer on {entry.live.device} that the average copies: a graph would "
                    "copy it while captured and never again. Move it to the model's device, or leave it out "
                    f"(exclude={entry.name!r}), or call ema.update() after graph.replay() instead."
                )

    def exchange(self, track: Track[Tensor]) -> Exchange:
        if track.name not in self._swaps:
            self._swaps[track.name] = Swap(cast(TensorMap, self.plan), self.tensors_of(track))
        return self._swaps[track.name].exchange(self.eval_tensors(track), track.name, self)

    def own(self, entry: TensorEntry[Tensor]) -> Tensor:
        if type(entry.live) in (Tensor, nn.Parameter):
            return self.copied(entry, None)
        with outside_inference_mode():
            return copy.deepcopy(entry.live)  # of a class of its own: quantised weights know how

    def cloned(self, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
        places = {id(t): tensors[e.name] for e in self.plan.entries.values() for t in e.tensors}
        return clone_onto(self.model, places)

    def guard(self, guards: int) -> None:
        """One more or less optimizer calls ``before_step``."""
        self._guards += guards
        self.updater.guard(self._guards > 0)

    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured."""
        return self.updater.capturing()

    def before_step(self) -> None:
        """θ is about to be written by an optimizer."""
        self.updater.before_step()

    def _kind_of_model(self) -> str:
        return type(unwrap(self.model)).__name__


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.device, tensor.stride()
