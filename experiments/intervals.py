"""What several seeds say together, and what a curve says besides its last point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

from scipy.stats import t


def estimate(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and the half width of its 95 % interval, ``t·s/√n`` (Student); one value alone has none."""
    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None
    return {"mean": fmean(values), "half": half}


def second_half(values: Sequence[float]) -> Sequence[float]:
    """The evaluations after the rise."""
    return values[(len(values) - 1) // 2 :]


def jump(values: Sequence[float]) -> float:
    """The mean of ``|aₜ₊₁ - aₜ|`` between evaluations, the rise included; of at least two."""
    return fmean(abs(after - before) for before, after in pairwise(values))


def wobble(values: Sequence[float]) -> float:
    """The mean of ``|aₜ - (aₜ₋₁ + aₜ₊₁)/2|``, free of a steady rise; of at least three evaluations."""
    return fmean(abs(b - (a + c) / 2) for a, b, c in zip(values, values[1:], values[2:], strict=False))


def moment(values: Sequence[float], level: float, at: Sequence[float] | None = None) -> float:
    """When a rising curve first reaches a level, on the line between two evaluations.

    Args:
        values: the curve.
        level: what is to be reached. A curve that never does is given its last moment, which flatters it.
        at: when each value was measured; 1, 2, 3, … unless given.
    """
    times = range(1, len(values) + 1) if at is None else at
    points = list(zip(times, values, strict=True))
    if values[0] >= level:
        return points[0][0]
    for (begun, low), (ended, high) in pairwise(points):
        if high >= level:
            return begun + (ended - begun) * (level - low) / (high - low)
    return points[-1][0]
