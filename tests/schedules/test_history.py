"""Histories whose updates differ in size: bounded, as exact as the profile says, and quick to sum up."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest

from polyak import Constant, Decay, HalfLife, Profile, Uniform, Warmup
from polyak.cli.describe import figures_of
from polyak.schedules import History, Run
from polyak.schedules.history import _GROUPS, _RUNS  # pyright: ignore[reportPrivateUsage]
from polyak.schedules.runs import coarsened

SIZES: dict[str, Callable[[random.Random, int], int]] = {
    "noise": lambda rng, _: rng.randrange(2000, 4000),
    "rare": lambda rng, _: rng.choice([1, 100_000]),
    "growing": lambda rng, t: 1000 + t + rng.randrange(3),
}


def record(decay: Decay, sizes: list[int]) -> History:
    history = History()
    for clock, size in zip(accumulate(sizes, initial=0), sizes, strict=False):
        history.record(decay, clock, 1, size)
    return history


@pytest.mark.parametrize("draw", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("half_life", [3e5, 3e7, 3e9])
def test_a_merged_history_is_as_exact_as_it_says(
    draw: Callable[[random.Random, int], int], half_life: float
) -> None:
    rng = random.Random(0)
    sizes = [draw(rng, t) for t in range(30_000)]
    profile = record(HalfLife(tokens=half_life), sizes).profile()
    assert len(profile.terms[0][1]) <= _RUNS + 2
    assert profile.within == 1 / _GROUPS
    assert profile.steps == len(sizes)
    assert sum(run.count * run.advance for run in profile.terms[0][1]) == sum(sizes)
    older = 2.0 ** (-np.cumsum(sizes[::-1])[::-1] / half_life)  # the weight of all points before each update
    assert np.abs(np.cumsum(profile.weights())[:-1] - older).max() <= profile.within
    assert profile.mean_age == pytest.approx(older.sum(), rel=1e-3)
    assert profile.initial_weight == pytest.approx(older[0], rel=1e-9)
    crossed = len(sizes) - int(np.searchsorted(older, 0.5))
    if crossed < len(sizes):
        assert profile.half_life == pytest.approx(crossed, rel=2e-3, abs=1)


@pytest.mark.slow
def test_updates_of_varying_stride_are_merged_too() -> None:
    rng, history, step = random.Random(1), History(), 0
    decay = Warmup(0.9995)
    strides = [rng.randrange(1, 9) for _ in range(5_000)]
    for stride in strides:
        history.record(decay, step, stride, stride)
        step += stride
    exact = Profile(((1.0, tuple(exactly(decay, strides))),))
    merged = history.profile()
    assert len(merged.terms[0][1]) <= _RUNS + 2
    assert merged.steps == exact.steps
    off = np.abs(np.cumsum(merged.weights() - exact.weights())).max()
    assert off <= merged.within
    assert merged.mean_age == pytest.approx(exact.mean_age, abs=merged.within * exact.steps)


def exactly(decay: Decay, strides: list[int]) -> list[Run]:
    return [
        Run(decay, clock, 1, stride, stride)
        for clock, stride in zip(accumulate(strides, initial=0), strides, strict=False)
    ]


def test_what_stays_is_exact_and_equal_updates_are_left_alone() -> None:
    history = History([Run(Uniform(), 0, 10**6, 1, 1)])
    assert coarsened(history.runs, 8) == list(history.runs)
    assert history.profile().within == 0
    runs = exactly(Constant(0.9), [1, 2] * 50)
    kept = coarsened(runs, 8)
    assert kept[-4:] == runs[-4:]  # each weighs more than an eighth, or lies across two of them
    assert len(kept) < 20


def test_another_decay_or_a_clock_that_stops_is_not_merged_over() -> None:
    decay, other = HalfLife(tokens=1e9), HalfLife(tokens=2e9)
    first = [Run(decay, 10 * i, 1, 1, 10) for i in range(100)]
    second = [Run(other, 10 * i + 1000, 1, 1, 10) for i in range(100)]
    again = [Run(other, 10 * i, 1, 1, 10) for i in range(100)]
    assert coarsened(first + second + again, 4) == [
        Run(decay, 0, 100, 1, 10),
        Run(other, 1000, 100, 1, 10),
        Run(other, 0, 99, 1, 10),
        Run(other, 990, 1, 1, 10),  # it reaches to the end, where a cell begins
    ]


def test_it_is_written_read_and_continued() -> None:
    decay = HalfLife(tokens=1e6)
    rng = random.Random(2)
    sizes = [rng.randrange(2000, 4000) for _ in range(20_000)]
    profile = record(decay, sizes).profile()
    read = Profile.from_json(profile.to_json())
    assert read == profile
    assert len(profile.to_json()) < 150_000
    assert (0.5 * read).within == profile.within / 2
    assert (read + read).since(100).within == 2 * profile.within
    assert Profile.from_decay(0.9, 5).to_json() == Profile.from_decay(0.9, 5).to_json().replace("within", "")
    assert History(read.terms[0][1], read.within).profile() == profile


def test_an_old_history_of_any_length_is_read() -> None:
    rng = random.Random(3)
    runs = exactly(HalfLife(tokens=1e6), [rng.randrange(2000, 4000) for _ in range(20_000)])
    old = Profile.from_json(Profile(((1.0, tuple(runs)),)).to_json())
    assert old.within == 0
    continued = History(old.terms[0][1], old.within).profile()
    assert len(continued.terms[0][1]) <= _RUNS + 2
    assert continued.within
    assert continued.mean_age == pytest.approx(old.mean_age, rel=1e-3)


def test_an_update_is_recorded_without_looking_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging is rare: each time it makes room for thousands."""
    merged: list[int] = []

    def count(runs: list[Run], groups: int) -> list[Run]:
        kept = coarsened(runs, groups)
        merged.append(len(runs) - len(kept))
        return kept

    monkeypatch.setattr("polyak.schedules.history.coarsened", count)
    rng = random.Random(4)
    record(HalfLife(tokens=1e8), [rng.randrange(2000, 4000) for _ in range(50_000)])
    assert min(merged) > _RUNS // 4


def test_figures_of_a_mixture_of_snapshots_take_one_pass() -> None:
    """Snapshots of a track are beginnings of one another: a hundred cost what the longest does."""
    snapshots = [Profile.from_decay(Warmup(0.999), 1000 * (i + 1)) for i in range(100)]
    mixed = Profile.mix(snapshots, [0.01] * 100)
    assert mixed.effort < 2 * snapshots[-1].effort
    alone = sum(np.pad(0.01 * p.weights(), (0, 100_000 - p.steps)) for p in snapshots)
    np.testing.assert_allclose(mixed.weights(), alone, atol=1e-15)
    found = figures_of(mixed)
    assert found is not None
    ages = np.arange(100_000, -1, -1)
    assert found.mean_age == pytest.approx(alone @ ages)
    assert found.effective_samples == pytest.approx(1 / (alone @ alone))


@pytest.mark.parametrize(
    "profile",
    [
        Profile.from_decay(Warmup(0.9), 10**18),
        Profile.from_decay(Warmup(0.9), 10**9, every=10**9),
        Profile(tuple((1e-5, (Run(Constant(0.9), i, 9, 1, 1),)) for i in range(100_000))),
        Profile.raw(10**17),
    ],
    ids=["long", "composed", "many terms", "far away"],
)
@pytest.mark.slow
def test_figures_that_would_take_long_are_left_out(profile: Profile) -> None:
    assert figures_of(profile) is None
