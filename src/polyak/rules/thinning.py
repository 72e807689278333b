"""Which snapshots of a long run to keep, so that what can still be synthesised stays wide.

A run that is killed and resumed keeps what it would have kept: the rules remember nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyak.rules.posthoc import gram_of
from polyak.rules.profile import Profile

PER_OCTAVE = 16
EVEN = 64


def logarithmic(numbers: Sequence[int]) -> set[int]:
    """Dense near the end, sparse at the beginning: about 16 for each doubling of the age.

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
    return {n for n in numbers if numbers[-1] - n < PER_OCTAVE * (n & -n) or n == numbers[-1]}


def even(numbers: Sequence[int]) -> set[int]:
    """At most 64 and the newest, equally far apart: each time they would be more, every other one goes.

    Examples:
        >>> sorted(even(range(1, 131)))[:3]
        [4, 8, 12]
    """
    stride = 1
    while numbers[-1] // stride > EVEN:
        stride *= 2
    return {n for n in numbers if n % stride == 0 or n == numbers[-1]}


def independent(profiles: Sequence[Sequence[Profile]], count: int) -> list[int]:
    """The snapshots that tell most: those the others can make best are dropped one after another.

    ``1/(G⁻¹)ᵢᵢ`` is the squared distance of profile i from all mixtures of the others (G their Gram
    matrix, profiles of unit norm); a snapshot's worth is that of its best track.

    Args:
        profiles: for each snapshot the profiles of its tracks; the last snapshot always stays.
        count: how many to keep, ≥ 1.

    Returns:
        Indices of those kept, ascending.
    """
    flat = [profile for snapshot in profiles for profile in snapshot]
    owner = np.repeat(np.arange(len(profiles)), [len(snapshot) for snapshot in profiles])
    gram, _ = gram_of(flat)
    norms = np.sqrt(gram.diagonal())
    gram = gram / np.outer(norms, norms) + 1e-9 * np.eye(len(flat))
    kept = list(range(len(profiles)))
    while len(kept) > count:
        rows = np.flatnonzero(np.isin(owner, kept))
        apart = 1 / np.linalg.inv(gram[np.ix_(rows, rows)]).diagonal()
        worth = [apart[owner[rows] == i].max() for i in kept[:-1]]
        kept.pop(int(np.argmin(worth)))
    return kept
