"""How often a parameter was not finite, counted where the parameters are, without waiting for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor


class Tally:
    """Updates in which some θ was not finite, and in how many of them each tensor was.

    Counts live on the parameters' device until somebody reads them; reading synchronises.
    """

    def __init__(self, updates: int = 0, tensors: dict[str, int] | None = None) -> None:
        self._updates, self._tensors = updates, dict(tensors or {})
        self.open([], torch.device("cpu"))

    def open(self, names: Sequence[str], device: torch.device) -> None:
        """Count for these tensors from now on."""
        self._names = list(names)
        self._hits = torch.zeros(len(names), dtype=torch.int64, device=device)
        self._affected = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, hit: Tensor) -> None:
        """One update: bool [tensors], in the order of the names."""
        self._hits += hit
        self._affected += hit.any()

    def blank(self) -> Tensor:
        """A ``hit`` to fill: all false."""
        return torch.zeros_like(self._hits, dtype=torch.bool)

    def read(self) -> tuple[int, dict[str, int]]:
        """Updates affected so far, and in how many of them each tensor was, by name. Synchronises."""
        self._updates += int(self._affected.item())
        hits = cast(list[int], self._hits.tolist())
        for name, count in zip(self._names, hits, strict=True):
            if count:
                self._tensors[name] = self._tensors.get(name, 0) + count
        self.open(self._names, self._hits.device)
        return self._updates, dict(self._tensors)
