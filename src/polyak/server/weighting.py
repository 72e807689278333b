"""Weight by profile: how much a push counts in the shared average. Numbers in, numbers out.

Legend: s is the step at which θ was taken, n its number of samples, T the newest step pushed so far, βₜ the
decay of step t and B(s, k) = βₛ₊₁·…·βₛ₊ₖ. A push has the mass

    ``m = n·(1-βₛ)·B(s, T-s)``,

what step s weighs in the schedule's own profile at T. The average is ``Σ m·θ / Σ m`` over all pushes, kept as
``A ← A + (m/M')·(θ-A)`` with ``M' = M + m``; when T moves on to T', every mass shrinks by ``B(T, T'-T)``, and
so does their sum M. So weights always add up to one, a late push counts as much as it would have in time, and
the order of arrival does not matter. The server's first value has no mass.

With one push of equal n at each step a constant β gives ``Debiased(β)``, and ``Uniform`` the mean of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyak.schedules import Decay, compose

_BLOCK = 1 << 14  # decays computed together: 128 KiB of float64, which stays in cache


class Total(NamedTuple):
    """What has been counted so far.

    newest: T, the newest step pushed; 0 before the first push.
    mass: M, the sum of all masses at T.
    """

    newest: int = 0
    mass: float = 0.0


def kept(decay: Decay, since: int, until: int) -> float:
    """``B(s, t-s) = βₛ₊₁·…·βₜ``: what is left at t of a weight given at s ≤ t."""
    if decay.closed:
        return compose(decay, since, until - since)
    product = 1.0
    for first in range(since + 1, until + 1, _BLOCK):
        t = np.arange(first, min(first + _BLOCK, until + 1), dtype=np.float64)
        product *= float(np.prod(decay.betas(t)))
    return product


def remaining(decay: Decay, steps: Sequence[int], newest: int) -> list[float]:
    """``B(s, T-s)`` for each of these steps, which do not fall, in one pass back from T."""
    out, at, product = list[float](), newest, 1.0
    for step in reversed(steps):
        # Once nothing is left, nothing is left of what came before.
        product, at = product and product * kept(decay, step, at), step
        out.append(product)
    return out[::-1]


def mass(decay: Decay, step: int, samples: float, newest: int) -> float:
    """``m = n·(1-βₛ)·B(s, T-s)`` for s = ``step`` ≥ 1, n = ``samples`` > 0, T = ``newest`` ≥ s."""
    return samples * (1 - decay(step)) * kept(decay, step, newest)


def advanced(total: Total, decay: Decay, newest: int) -> Total:
    """The same pushes seen from a later step: ``M ← M·B(T, T'-T)``."""
    if newest <= total.newest:
        return total
    return Total(newest, total.mass * kept(decay, total.newest, newest))


def counted(total: Total, decay: Decay, step: int, samples: float) -> tuple[Total, float]:
    """Count a push.

    Args:
        total: before it.
        decay: the schedule.
        step: s ≥ 1, in the schedule's unit.
        samples: n > 0.

    Returns:
        The total after it, and the share ``m/M'`` by which the average moves towards θ; 0 for a push that has
        no weight in this schedule.
    """
    total = advanced(total, decay, step)
    m = mass(decay, step, samples, total.newest)
    after = total.mass + m
    return Total(total.newest, after), m / after if after > 0 else 0.0
