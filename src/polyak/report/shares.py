"""A profile in a few hundred pieces, fine where it is recent: what is drawn of it."""

from __future__ import annotations

import numpy as np

from polyak._dtypes import Array
from polyak.report.facts import Shares
from polyak.schedules import Profile

PIECES = 120


def edges_of(steps: int, pieces: int = PIECES) -> list[int]:
    """The edges of pieces of steps 1 … T: half of them equally long, half growing with their age.

    Examples:
        >>> edges_of(10, 4)
        [0, 5, 7, 9, 10]
    """
    if steps < 1:
        return [0]
    ages = np.geomspace(1, steps, pieces // 2 + 1)
    even = np.linspace(0, steps, pieces // 2 + 1)
    inner = np.round(np.concatenate([steps - np.round(ages), even])).astype(int)
    return sorted({0, steps, *inner.tolist()})


def shares_of(profile: Profile, edges: list[int] | None = None) -> Shares:
    """The share of the average that each piece of the training has.

    Args:
        profile: of the average; its weights must be known.
        edges: by default ``edges_of`` its steps.

    Examples:
        >>> shares_of(Profile.from_decay(0.5, 3), [0, 2, 3]).shares
        (0.375, 0.5)
    """
    edges = edges_of(profile.steps) if edges is None else edges
    last = edges[-1]
    cut = np.asarray(edges)
    below = np.zeros(len(edges))  # the weight of all steps up to each edge
    ages = _Quantiles((0.5, 0.9))
    initial = 0.0
    for low, window in profile.windows(last + 1):  # newest first
        upto = np.cumsum(window)
        inside = np.clip(cut - low + 1, 0, len(window))
        below += np.where(inside > 0, upto[np.maximum(inside, 1) - 1], 0.0)
        ages.add(window)
        if low == 0:
            initial = float(window[0])
    pieces = np.diff(below)
    return Shares(
        tuple(edges), tuple(float(f"{share:.4g}") for share in pieces.tolist()), initial, *ages.found(last)
    )


class _Quantiles:
    """The ages within which given shares of the weight lie, from windows that come newest first."""

    def __init__(self, shares: tuple[float, ...]) -> None:
        self._shares, self._ages = shares, dict[float, int]()
        self._newer, self._passed = 0.0, 0

    def add(self, window: Array) -> None:
        """Take the next older window."""
        newer = self._newer + np.cumsum(window[::-1])
        for share in self._shares:
            if share not in self._ages and newer.max() >= share * (1 - 1e-12):
                self._ages[share] = self._passed + int(np.argmax(newer >= share * (1 - 1e-12))) + 1
        self._newer, self._passed = (
            float(newer[-1]),
            self._passed + len(window),
        )

    def found(self, steps: int) -> tuple[float, ...]:
        """The number of newest steps with each share."""
        return tuple(float(self._ages.get(share, steps + 1)) for share in self._shares)
