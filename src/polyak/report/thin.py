"""Long curves with few points: of each bucket the least and the largest value, so no spike is lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from polyak._dtypes import Array
from polyak.report.facts import Series

POINTS = 1200  # at most so many of a curve are drawn, about one for each pixel of its width


def thinned(steps: Array, values: Array, points: int = POINTS) -> Series:
    """A curve with at most ``points`` points: of each bucket the least and the largest value, in order.

    First and last point are kept.

    Args:
        steps: ascending, of any length.
        values: as many; those that are not finite are left out.
        points: ≥ 4.

    Examples:
        >>> thinned(np.arange(9.0), np.array([0, 0, 9, 0, 0, 0, -5, 0, 1.0]), points=6)
        Series(steps=(0.0, 2.0, 6.0, 8.0), values=(0.0, 9.0, -5.0, 1.0))
    """
    kept = np.isfinite(values) & np.isfinite(steps)
    steps, values = steps[kept], values[kept]
    if len(steps) > points:
        chosen = _extremes(values, points)
        steps, values = steps[chosen], values[chosen]
    return Series(tuple(map(_short, steps.tolist())), tuple(map(_short, values.tolist())))


def _extremes(values: Array, points: int) -> Array:
    """The places of the least and the largest value of each bucket, of the first and of the last."""
    bounds = np.linspace(0, len(values), (points - 2) // 2 + 1).astype(np.intp)
    places = {0, len(values) - 1}
    for low, high in pairwise(bounds.tolist()):
        bucket = values[low:high]
        places |= {int(low + bucket.argmin()), int(low + bucket.argmax())}
    return np.array(sorted(places))


def _short(value: float) -> float:
    """Six digits: more cannot be seen, and would double the page."""
    return float(f"{value:.6g}") if value % 1 else value
