"""Makes the updater of a Paddle EMA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paddle import Tensor

from polyak._core.tensor_map import TensorEntry, TensorMap
from polyak._core.track import Track, averages_in, places_of
from polyak._core.updater import Skipped
from polyak.paddle.engine import Pair, Updater
from polyak.paddle.store import Settings


@dataclass(frozen=True)
class Updates:
    """Makes updaters; see ``polyak._core.framework.UpdaterFactory``."""

    settings: Settings

    def make(
        self,
        averaged: Sequence[TensorEntry[Tensor]],
        copied: Sequence[TensorEntry[Tensor]],
        copies: Mapping[str, Tensor],
        tracks: Sequence[Track[Tensor]],
        skipped: Skipped,
    ) -> Updater:
        pairs = [
            Pair(e.name, e.live, *averages_in(tracks, e.name), places=places_of(tracks, e.name))
            for e in averaged
            if 0 not in e.live.shape
        ]
        buffers = [(copies[e.name], e.live) for e in copied]
        return Updater(pairs, buffers, self.settings, skipped)

    def record(self, plan: TensorMap[Tensor]) -> None:
        """Never called, since Paddle captures no graphs here."""
