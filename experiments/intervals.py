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


def moment(values: Sequence[float], level: float) -> float:
    """When a rising curve first reaches a level: in evaluations from 1 on, between two of them by a line.

    One that never does is given the evaluation after its last, which flatters it.
    """
    for i, value in enumerate(values):
        if value >= level:
            before = values[i - 1] if i else value
            return i + 1 - (value - level) / (value - before) if value > before else i + 1.0
    return len(values) + 1.0
