"""How often a parameter was not finite, counted where the parameters are, without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from polyak.torch.engines.contract import Counts, Engine


class Tally:
    """Updates in which some θ was not finite, and in how many of them each tensor was.

    Counts live on the parameters' device until somebody reads them; reading synchronises.
    """

    def __init__(self, updates: int = 0, tensors: dict[str, int] | None = None) -> None:
        self._updates, self._tensors = updates, dict(tensors or {})
        self._engines: list[Engine] = []
        self._counts: list[Counts] = []

    def open(self, engines: Sequence[Engine]) -> None:
        """Count what these engines find from now on."""
        self.read()
        self._engines = list(engines)
        self._counts = [engine.counts or Counts.of(engine.pairs) for engine in engines]

    def add(self, marks: Sequence[Tensor | None]) -> None:
        """One update: for each engine bool [pairs], or None if it found nothing or counts by itself."""
        found = [(counts, mark) for counts, mark in zip(self._counts, marks, strict=True) if mark is not None]
        if not found:
            return
        device = found[0][0].updates.device
        for counts, mark in found:
            counts.tensors.add_(mark)
        found[0][0].updates.add_(torch.stack([mark.any().to(device) for _, mark in found]).any())

    def read(self) -> tuple[int, dict[str, int]]:
        """Updates affected so far, and in how many of them each tensor was, by name. Synchronises."""
        for engine, counts in zip(self._engines, self._counts, strict=True):
            self._updates += int(counts.updates.item())
            for pair, count in zip(engine.pairs, cast(list[int], counts.tensors.tolist()), strict=True):
                if count:
                    self._tensors[pair.name] = self._tensors.get(pair.name, 0) + count
            counts.updates.zero_()
            counts.tensors.zero_()
        return self._updates, dict(self._tensors)
