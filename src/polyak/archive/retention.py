"""Rules for thinning out the snapshots of a long run, so that many averages can still be synthesised.

The rules have no state, so a run that is killed and resumed keeps the same snapshots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyak.schedules.half_life import HalfLife
from polyak.schedules.posthoc import STEADY, Problem
from polyak.schedules.profile import Profile

_RECENT = 16
_EVEN = 64
_TARGETS = 8


def logarithmic(numbers: Sequence[int]) -> set[int]:
    """Keep the newest 16 snapshots, then 8 for each doubling of the age.

    A snapshot whose number is divisible by 2ᵏ, and by no higher power, is kept until 16·2ᵏ newer ones
    were taken, so the error of a synthesised average does not depend on its half-life.

    Args:
        numbers: of the snapshots, counted from 1 as they were taken, ascending.

    Returns:
        Those to keep, always including the newest.

    Examples:
        >>> sorted(logarithmic(range(1, 200)))[:9]
        [16, 32, 48, 64, 72, 80, 88, 96, 104]
    """
    return {n for n in numbers if numbers[-1] - n < _RECENT * (n & -n) or n == numbers[-1]}


def even(numbers: Sequence[int]) -> set[int]:
    """Keep at most 64 at equal distances, and the newest: beyond 64, every other one is dropped.

    Examples:
        >>> sorted(even(range(1, 131)))[:3]
        [4, 8, 12]
    """
    stride = 1
    while numbers[-1] // stride > _EVEN:
        stride *= 2
    return {n for n in numbers if n % stride == 0 or n == numbers[-1]}


def most_informative(snapshots: Sequence[Sequence[Profile]], count: int) -> list[int]:
    """Keep the snapshots from which most can be synthesised, dropping the least informative one by one.

    The loss is the mean logarithm of the errors of half-lives from 1/200 of the run to all of it,
    synthesised at its current end; errors below 0.1 % count as 0.1 %.

    Args:
        snapshots: for each the profiles of its tracks, oldest first; the newest is always kept.
        count: number of snapshots to keep, ≥ 1, besides θ₀.

    Returns:
        Indices of the kept ones, ascending.
    """
    flat = [profile for snapshot in snapshots for profile in snapshot] + [Profile.raw(0)]
    owner = np.repeat(np.arange(len(snapshots)), [len(snapshot) for snapshot in snapshots])
    steps = max(profile.steps for profile in flat)
    half_lives = np.geomspace(max(1.0, steps / 200), max(2.0, steps), _TARGETS)
    targets = [Profile.from_decay(HalfLife(steps=h), steps) for h in half_lives]
    problem = Problem.of(flat, targets, STEADY, None)

    def lost(kept: list[int]) -> float:
        rows: list[int] = [*np.flatnonzero(np.isin(owner, kept)).tolist(), len(flat) - 1]
        errors = [problem.solution(rows, i).error for i in range(_TARGETS)]
        return float(np.mean(np.log(np.maximum(errors, 1e-3))))

    kept = list(range(len(snapshots)))
    while len(kept) > count:
        losses = [lost([k for k in kept if k != dropped]) for dropped in kept[:-1]]
        kept.pop(int(np.argmin(losses)))
    return kept
