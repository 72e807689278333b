"""Which snapshots stay: the counts each rule promises, that it remembers nothing, and that it is worth it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import HalfLife, Power, Profile
from polyak.archive.retention import even, logarithmic, most_informative
from polyak.schedules import solve


@given(st.integers(1, 3000))
@pytest.mark.slow
def test_thinning_as_they_come_is_thinning_all_at_once(count: int) -> None:
    """A snapshot dropped early is one that would have been dropped late: killed runs keep the same."""
    for rule in (logarithmic, even):
        kept: list[int] = []
        for number in range(1, count + 1):
            kept = sorted(rule([*kept, number]))
        # All but the newest of each moment are chosen by their number alone.
        assert set(kept) == rule(range(1, count + 1))


@given(st.integers(1, 10_000_000))
def test_a_snapshot_is_kept_by_its_age_and_number(count: int) -> None:
    recent = range(max(1, count - 40), count + 1)
    kept = logarithmic(recent)
    assert set(range(max(1, count - 15), count + 1)) <= kept
    assert all(number % 2 == 0 for number in kept if count - number >= 16)
    assert count in even(recent)


def test_the_number_grows_as_the_logarithm() -> None:
    counts = [len(logarithmic(range(1, 2**k + 1))) for k in (8, 10, 12, 14)]
    assert all(later - sooner == 16 for sooner, later in pairwise(counts))
    assert 33 <= len(even(range(1, 10_000))) <= 65


def test_gaps_grow_with_the_age_and_never_by_more_than_a_seventh() -> None:
    kept = sorted(logarithmic(range(1, 5001)))
    ages = 5000 - np.array(kept)
    assert (-np.diff(ages) <= np.maximum(1, ages[1:] / 7)).all()


def worst(stored: list[list[Profile]], steps: int) -> float:
    flat = [Profile.raw(0), *(profile for snapshot in stored for profile in snapshot)]
    wanted = [Profile.from_decay(HalfLife(steps=steps * share), steps) for share in (0.02, 0.05, 0.2, 0.5)]
    return max(solve(flat, target).error for target in wanted)


@pytest.mark.parametrize("spread", [(20.0, 6.0), (12.0,)])
@pytest.mark.slow
def test_those_that_tell_most_beat_any_even_choice(spread: tuple[float, ...]) -> None:
    stored = [[Profile.from_decay(Power(gamma=g), t) for g in spread] for t in range(50, 2001, 50)]
    chosen = most_informative(stored, 8)
    assert len(chosen) == 8
    assert chosen == sorted(chosen)
    assert chosen[-1] == 39
    evenly = [stored[i] for i in range(4, 40, 5)]
    assert worst([stored[i] for i in chosen], 2000) < worst(evenly, 2000) / 2
    assert most_informative(stored[:5], 9) == [0, 1, 2, 3, 4]
