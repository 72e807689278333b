"""How often a parameter was not finite, counted where the parameters are, without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from polyak.torch._engines.base import Counts, Engine


class NonFiniteCounter:
    """Updates in which some θ was not finite, and in how many of them each tensor was.

    Counts live on the parameters' device until somebody reads them; reading synchronises. Engines that count
    by themselves do not know of each other: what two of them found is taken for the same updates, since NaN
    reaches all of a model at once.
    """

    def __init__(self, updates: int = 0, tensors: dict[str, int] | None = None) -> None:
        self._before = updates, dict(tensors or {})  # what engines of other times found
        self._engines: list[Engine] = []
        self._counts: list[Counts] = []
        self._told: list[Counts] = []  # of the engines that leave it to us

    def open(self, engines: Sequence[Engine]) -> None:
        """Count what these engines find from now on."""
        before, held = self.read(), list(engines)
        counts = [engine.counts or Counts.of(engine.pairs) for engine in held]
        told = [c for c, engine in zip(counts, held, strict=True) if engine.counts is None]
        self._before, self._engines, self._counts, self._told = before, held, counts, told

    def add(self, marks: Sequence[Tensor | None]) -> None:
        """One update: for each engine bool [pairs], or None if it found nothing or counts by itself."""
        found = [(counts, mark) for counts, mark in zip(self._counts, marks, strict=True) if mark is not None]
        if not found:
            return
        updates = self._told[0].updates
        for counts, mark in found:
            counts.tensors.add_(mark)
        updates.add_(torch.stack([mark.any().to(updates.device) for _, mark in found]).any())

    def read(self) -> tuple[int, dict[str, int]]:
        """Updates affected so far, and in how many of them each tensor was, by name. Synchronises."""
        before, named = self._before
        found = [cast(list[int], torch.cat([c.updates.view(1), c.tensors]).tolist()) for c in self._counts]
        updates = max((updates for updates, *_ in found), default=0)
        tensors = dict(named)
        for engine, (_, *counts) in zip(self._engines, found, strict=True):
            for pair, count in zip(engine.pairs, counts, strict=True):
                if count:
                    tensors[pair.name] = tensors.get(pair.name, 0) + count
        return before + updates, tensors
