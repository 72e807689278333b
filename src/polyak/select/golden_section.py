"""Finding the best half-life with few evaluations: a logarithmic grid, then golden section.

Legend: h a half-life in training steps, x = ln h; r the ratio of neighbours on the grid; a metric is
called better by its ``Mode``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, TypeAlias

import numpy as np

from polyak.errors import ConfigError

Mode: TypeAlias = Literal["max", "min"]
GOLDEN = (3 - math.sqrt(5)) / 2  # 0.382: the part of a segment at which its next point lies
_SAME = 1e-4  # two half-lives nearer than this, in ln h, are one


def check_mode(mode: str) -> None:
    """Refuse what is neither "max" nor "min"."""
    if mode not in ("max", "min"):
        raise ConfigError(f'mode={mode!r}: must be "max" (larger is better) or "min".')


def check_min_gain(min_gain: float) -> None:
    """Refuse a gain that is negative or not finite."""
    if not (math.isfinite(min_gain) and min_gain >= 0):
        raise ConfigError(f"min_gain={min_gain}: must be a finite number, at least 0.")


def gain(new: float, best: float, mode: Mode) -> float:
    """By how much ``new`` is better: ``new - best``, or ``best - new`` where less is better.

    The difference is that of the decimals the two are written as, so that 0.94 beats 0.93 by 0.01.

    Examples:
        >>> gain(0.94, 0.93, "max"), 0.94 - 0.93
        (0.01, 0.009999999999999898)
    """
    difference = Decimal(repr(float(new))) - Decimal(repr(float(best)))
    return float(difference if mode == "max" else -difference)


def grid(low: float, high: float, points: int) -> list[float]:
    """``hᵢ = low·rⁱ``: half-lives equally far apart on a logarithmic scale, both ends among them.

    Args:
        low: the shortest, in training steps, > 0.
        high: the longest, ≥ ``low``.
        points: how many, ≥ 1; one alone lies in the middle.

    Returns:
        Half-lives, ascending; fewer than ``points`` where the ends are the same.

    Raises:
        ConfigError: an argument is outside its rule.

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
    """The half-life to look at next: a golden section into the longer side of the best one so far.

    On x = ln h, with the best point b between its neighbours a and c: ``b ± 0.382·max(b-a, c-b)``.
    What was evaluated is all it needs to know, so a search goes on where it was interrupted. If the
    metric has a single peak, n ≥ 2 points after a grid leave it between neighbours at most
    ``ln r · 0.618ⁿ⁻²`` apart.

    Args:
        metrics: by half-life; None where the evaluation failed, which counts as worse than any.
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
