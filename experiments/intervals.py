"""What several seeds say together."""

from __future__ import annotations

import math
from statistics import fmean, stdev

from scipy.stats import t


def estimate(values: list[float]) -> dict[str, float | None]:
    """The mean and the half width of its 95 % interval, ``t·s/√n`` (Student); one value alone has none."""
    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None
    return {"mean": fmean(values), "half": half}
