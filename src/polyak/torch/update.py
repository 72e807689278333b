"""Makes the updater of a torch EMA, and keeps the CUDA graphs that contain one of its updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from polyak._core.tensor_map import TensorEntry, TensorMap
from polyak._core.track import Track, averages_in, places_of
from polyak._core.updater import Skipped
from polyak.errors import ConfigError
from polyak.torch._engines.base import Pair
from polyak.torch._engines.nonfinite_counter import NonFiniteCounter
from polyak.torch._engines.updater import Graph, Updater
from polyak.torch.store import Settings, outside_inference_mode


class Updates:
    """Makes updaters, and forwards calls of optimizers and graphs to the current one.

    Args:
        settings: policy, seed, preferred engine, overlap.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._guards = 0  # optimizers that call before_step
        # Graphs hold addresses of engines' tables and of averages: all of them stay as long as this does.
        self._captured: list[Updater] = []
        self._updater = Updater((), (), settings, NonFiniteCounter())

    def __reduce__(self) -> tuple[Any, ...]:
        return Updates, (self._settings,)

    def make(
        self,
        averaged: Sequence[TensorEntry[Tensor]],
        copied: Sequence[TensorEntry[Tensor]],
        copies: Mapping[str, Tensor],
        tracks: Sequence[Track[Tensor]],
        skipped: Skipped,
    ) -> Updater:
        pairs = [pair for entry in averaged for pair in _pairs(entry, tracks)]
        buffers = [(copies[e.name], e.live) for e in copied]
        with outside_inference_mode():
            self._updater = Updater(pairs, buffers, self._settings, NonFiniteCounter(*skipped))
        self._updater.guard(self._guards > 0)
        return self._updater

    def record(self, plan: TensorMap[Tensor]) -> None:
        _refuse_host_buffers(plan)
        self._updater.record()
        if not self.captured():
            self._captured.append(self._updater)

    def captured(self) -> bool:
        """Whether a CUDA graph contains an update of the current updater."""
        return self._updater in self._captured

    def replay(self, graph: Graph, weights: Sequence[float], step: int) -> None:
        """Replay ``graph``, whose update uses these weights."""
        self._updater.replay(graph, weights, step)

    def guard(self, guards: int) -> None:
        """Change the number of optimizers that call ``before_step``."""
        self._guards += guards
        self._updater.guard(self._guards > 0)

    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured."""
        return self._updater.capturing()

    def before_step(self) -> None:
        """Call before an optimizer writes θ."""
        self._updater.before_step()


def _pairs(entry: TensorEntry[Tensor], tracks: Sequence[Track[Tensor]]) -> list[Pair]:
    """θ and its averages; several if a rounded piece is not contiguous in the whole tensor.

    The random bits of an element depend on its place there, so that every layout rounds alike.
    """
    averages, residuals = averages_in(tracks, entry.name)
    places = places_of(tracks, entry.name)
    if entry.piece is None or averages[0].dtype.itemsize > 2:
        return [Pair(entry.name, entry.live, averages, residuals, entry.kind == "buffer", places=places)]
    from polyak.torch._sharding.layout import ShardedPiece, stretches  # see ``_sharding.kinds``

    return [
        Pair(
            entry.name,
            entry.live[place],
            tuple(average[place] for average in averages),
            tuple(residual[place] for residual in residuals),
            entry.kind == "buffer",
            offset,
            places,
        )
        for offset, place in stretches(cast(ShardedPiece, entry.piece))
    ]


def _refuse_host_buffers(plan: TensorMap[Tensor]) -> None:
    devices = {entry.live.device for entry in plan.having("average")}
    for entry in plan.having("copy"):
        if entry.live.device not in devices:
            raise ConfigError(
                f"{entry.name} is a buffer on {entry.live.device} that the average copies: a graph would "
                "copy it only during capture. Move it to the model's device, or leave it out "
                f"(exclude={entry.name!r}), or call ema.update() after graph.replay() instead."
            )
