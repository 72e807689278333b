"""Counting updates with non-finite parameters on the device, without synchronising."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from polyak.torch._engines.base import Counts, Engine, Marks


class NonFiniteCounter:
    """Updates in which some θ was not finite, and in how many of them each tensor was.

    Counts stay on the parameters' device until they are read, which synchronises. Engines with counts of
    their own do not share a counter: the updates they found are assumed to be the same, since NaN spreads
    through a whole model at once.
    """

    def __init__(self, updates: int = 0, tensors: dict[str, int] | None = None) -> None:
        self._before = updates, dict(tensors or {})  # counts of earlier engines
        self._engines: list[Engine] = []
        self._counts: list[Counts] = []
        self._uncounted: list[Counts] = []  # of engines that return marks instead of counting

    def follow(self, engines: Sequence[Engine]) -> None:
        """Count what these engines find from now on."""
        before, held = self.read(), list(engines)
        counts = [engine.counts or Counts.of(engine.pairs) for engine in held]
        uncounted = [c for c, engine in zip(counts, held, strict=True) if engine.counts is None]
        self._before, self._engines, self._counts, self._uncounted = before, held, counts, uncounted

    def add(self, marks: Sequence[Marks]) -> None:
        """One update: for each engine bool [pairs], or None if it found nothing or counts by itself."""
        each = zip(self._counts, marks, strict=True)
        found = [(c, torch.as_tensor(m, device=c.tensors.device)) for c, m in each if m is not None]
        if not found:
            return
        updates = self._uncounted[0].updates
        for counts, mark in found:
            counts.tensors.add_(mark)
        updates.add_(torch.stack([mark.any().to(updates.device) for _, mark in found]).any())

    def read(self) -> tuple[int, dict[str, int]]:
        """Updates affected so far, and in how many of them each tensor was, by name. Synchronises."""
        before, named = self._before
        found: list[list[int]] = [torch.cat([c.updates.view(1), c.tensors]).tolist() for c in self._counts]
        updates = max((updates for updates, *_ in found), default=0)
        tensors = dict(named)
        for engine, (_, *counts) in zip(self._engines, found, strict=True):
            most: dict[str, int] = {}  # of the pieces of one tensor
            for pair, count in zip(engine.pairs, counts, strict=True):
                most[pair.name] = max(count, most.get(pair.name, 0))
            for name, count in most.items():
                if count:
                    tensors[name] = tensors.get(name, 0) + count
        return before + updates, tensors
