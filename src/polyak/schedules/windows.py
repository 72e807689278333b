"""The weights that histories give to the points of a trajectory, window by window, newest first.

Snapshots of one track have histories that are beginnings of one another. Their mixture is one history into
which the coefficients enter at their ends: going backwards, what is carried is multiplied by each update's
decay, and grows by a coefficient where a snapshot was taken. So a mixture of a hundred snapshots costs what
the longest of them costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import numpy as np

from polyak.schedules.decay import Array
from polyak.schedules.runs import Run, betas_of

WINDOW = 1 << 14  # points looked at together: 128 KiB of float64, which stays in cache
Term: TypeAlias = tuple[float, tuple[Run, ...]]


class Strand(NamedTuple):
    """A history, and the coefficient that enters at the end of each of its runs.

    base: the coefficient of what never was updated.
    """

    base: float
    runs: tuple[Run, ...]
    enters: tuple[float, ...]


def strands(terms: Sequence[Term]) -> list[Strand]:
    """Histories that differ only in the length of their last run, in one."""
    tails: dict[tuple[tuple[Run, ...], Run], dict[int, float]] = {}
    base = 0.0
    for coefficient, runs in terms:
        if runs:
            ends = tails.setdefault((runs[:-1], runs[-1]._replace(count=0)), {})
            ends[runs[-1].count] = ends.get(runs[-1].count, 0.0) + coefficient
        else:
            base += coefficient
    return [Strand(base, (), ())] * bool(base) + [_strand(*key, ends) for key, ends in tails.items()]


def _strand(head: tuple[Run, ...], tail: Run, ends: dict[int, float]) -> Strand:
    counts = sorted(ends)
    parts = [
        tail._replace(clock=tail.clock + before * tail.advance, count=count - before)
        for before, count in zip([0, *counts], counts, strict=False)
    ]
    return Strand(0.0, (*head, *parts), (*[0.0] * len(head), *(ends[count] for count in counts)))


def edges(points: int) -> Iterator[tuple[int, int]]:
    """The ends of the windows over this many points, newest first."""
    for low in range((points - 1) // WINDOW * WINDOW, -1, -WINDOW):
        yield low, min(low + WINDOW, points)


def windows(strand: Strand, points: int) -> Iterator[Array]:
    """The weights of θ₀ … θ_(points-1), newest window first.

    The product of all later decays is carried along: no ``exp(L_T - Lₜ)`` is ever formed, so nothing
    cancels and a decay of 0 simply ends the past.
    """
    ends = list(accumulate((run.count * run.stride for run in strand.runs), initial=0))
    left, carried = len(strand.runs), 0.0  # runs not gone through to their beginning
    for low, high in edges(points):
        window = np.zeros(high - low)
        while left and ends[left] >= low:
            run, start = strand.runs[left - 1], ends[left - 1]
            first, last = _updates_between(run, start, low, high)
            if ends[left] < high:
                carried += strand.enters[left - 1]
            if first <= last:
                j = np.arange(last, first - 1, -1, dtype=np.float64)
                betas = betas_of(run, j)
                with np.errstate(divide="ignore"):
                    kept = carried * np.exp(np.cumsum(np.log(betas)))  # what is left after each, newest first
                before = np.concatenate(([carried], kept[:-1]))
                window[(start - low + j * run.stride).astype(np.intp)] += (1 - betas) * before
                carried = float(kept[-1])
            if first > 1:
                break
            left -= 1
        if low == 0:
            window[0] += carried + strand.base
        yield window


def _updates_between(run: Run, start: int, low: int, high: int) -> tuple[int, int]:
    """First and last j of the run's updates whose point ``start + j·stride`` lies in [low, high)."""
    if run.stride == 0:
        return (1, run.count) if low <= start < high else (1, 0)
    return max(1, -((start - low) // run.stride)), min(run.count, (high - 1 - start) // run.stride)
