"""Finding the best half-life with few evaluations: a logarithmic grid, then golden section.

Legend: h a half-life in training steps, x = ln h; r the ratio of neighbours on the grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.metric import Mode

GOLDEN = (3 - math.sqrt(5)) / 2  # 0.382: the part of a segment at which its next point lies
_SAME = 1e-4  # two half-lives closer than this, in ln h, count as equal


def grid(low: float, high: float, points: int) -> list[float]:
    """``hᵢ = low·rⁱ``: half-lives evenly spaced on a logarithmic scale, both ends included.

    Args:
        low: the shortest, in training steps, > 0.
        high: the longest, ≥ ``low``.
        points: number of half-lives, ≥ 1; a single one lies in the middle.

    Returns:
        Half-lives, ascending; only one if the ends are equal.

    Examples:
        >>> [round(h) for h in grid(10, 1000, 3)]
        [10, 100, 1000]
    """
    if not (math.isfinite(high) and 0 < low <= high) or points < 1:
        raise ConfigError(f"grid({low}, {high}, points={points}): needs 0 < low ≤ high and points ≥ 1.")
    if points == 1 or math.log(high / low) < _SAME:
        return [math.sqrt(low * high)]
    return [float(h) for h in np.geomspace(low, high, points)]


def refined(metrics: Mapping[float, float | None], mode: Mode) -> float | None:
    """The half-life to evaluate next: a golden section into the longer side of the best one so far.

    On x = ln h, with the best point b between its neighbours a and c: ``b ± 0.382·max(b-a, c-b)``.
    It depends on the evaluations alone, so an interrupted search resumes where it stopped. If the metric
    has a single peak, n ≥ 2 points after a grid leave it between neighbours at most ``ln r · 0.618ⁿ⁻²``
    from each other.

    Args:
        metrics: by half-life; None where the evaluation failed, which is worse than any metric.
        mode: "max" if larger is better.

    Returns:
        A half-life; None when there is no metric yet, or no neighbour more than 0.01 % away.

    Examples:
        >>> round(refined({10: 0.5, 100: 0.9, 1000: 0.6}, "max"))
        241

    Source: Kiefer 1953, "Sequential minimax search for a maximum".
    """
    best = best_of(metrics, mode)
    if best is None:
        return None
    sides = [math.log(h / best) for h in metrics if h != best]
    below = max((side for side in sides if side < 0), default=0.0)
    above = min((side for side in sides if side > 0), default=0.0)
    side = above if above >= -below else below
    return best * math.exp(GOLDEN * side) if abs(side) > _SAME else None


def best_of(metrics: Mapping[float, float | None], mode: Mode) -> float | None:
    """The half-life with the best metric, the shortest of equals; None when there is no metric."""
    known = [(value if mode == "min" else -value, h) for h, value in metrics.items() if value is not None]
    return min(known)[1] if known else None
