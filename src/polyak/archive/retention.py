"""Which snapshots of a long run to keep, so that what can still be synthesised stays wide.

A run that is killed and resumed keeps what it would have kept: the rules remember nothing.
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
    """Dense near the end, sparse at the beginning: the newest 16, then 8 for each doubling of the age.

    A snapshot whose number is divisible by 2ᵏ, and by no higher power, is kept until 16·2ᵏ newer ones
    were taken, so the error of a synthesised average does not depend on its half-life.

    Args:
        numbers: of the snapshots, counted from 1 as they were taken, ascending.

    Returns:
        Those to keep; the newest is always among them.

    Examples:
        >>> sorted(logarithmic(range(1, 200)))[:9]
        [16, 32, 48, 64, 72, 80, 88, 96, 104]
    """
    return {n for n in numbers if numbers[-1] - n < _RECENT * (n & -n) or n == numbers[-1]}


def even(numbers: Sequence[int]) -> set[int]:
    """At most 64 and the newest, equally far apart: each time they would be more, every other one goes.

    Examples:
        >>> sorted(even(range(1, 131)))[:3]
        [4, 8, 12]
    """
    stride = 1
    while numbers[-1] // stride > _EVEN:
        stride *= 2
    return {n for n in numbers if n % stride == 0 or n == numbers[-1]}


def most_informative(snapshots: Sequence[Sequence[Profile]], count: int) -> list[int]:
    """The snapshots from which most can be made: that without which least is lost goes first.

    What is lost is the mean logarithm of the errors at which half-lives from 1/200 of the run to all of
    it can be synthesised at its present end; errors below 0.1 % count as none.

    Args:
        snapshots: for each the profiles of its tracks, oldest first; the newest always stays.
        count: how many to keep, ≥ 1. θ₀ is kept besides.

    Returns:
        Indices of those kept, ascending.
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
