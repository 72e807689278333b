"""The weight of a push, and the profile of what was counted: properties, without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import polyak
from polyak.schedules import Custom, Decay, Profile
from polyak.server import contributions
from polyak.server.contributions import Contributions
from polyak.server.weighting import Total, counted, mass

DECAYS: tuple[Decay, ...] = (
    polyak.Constant(0.9),
    polyak.HalfLife(steps=5),
    polyak.HalfLife(samples=7),
    polyak.HalfLife(share=0.1),
    polyak.Debiased(0.9),
    polyak.Warmup(0.99),
    polyak.Ramp(0.99, tau=10),
    polyak.Capped(0.99),
    polyak.Uniform(),
    polyak.Power(gamma=2.0),
    polyak.Cosine(0.5, 0.99, total=20),
    polyak.Piecewise([(10, 0.8), (None, 0.95)]),
    polyak.Anneal(60, "cosine"),
    polyak.Anneal(60, "linear"),
    Custom(lambda t: min(0.9, t / (t + 10)), "mine"),
)
decays = st.sampled_from(DECAYS)
Pushes = list[tuple[int, float]]
pushes = st.lists(
    st.tuples(st.integers(1, 40), st.floats(0.5, 100).map(lambda n: round(n, 1))), min_size=1, max_size=30
)


def averaged(decay: Decay, steps: Sequence[tuple[int, float]], values: Sequence[float]) -> float:
    """The average as a server keeps it."""
    total, average = Total(), 1e9  # the server's first value, which must leave no trace
    for (step, samples), value in zip(steps, values, strict=True):
        total, share = counted(total, decay, step, samples)
        average += share * (value - average)
    return average


@given(decays, pushes, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(decay: Decay, steps: Pushes, random: object) -> None:
    values = [float(i % 7) for i in range(len(steps))]
    both = list(zip(steps, values, strict=True))
    one = averaged(decay, steps, values)
    random.shuffle(both)  # type: ignore[attr-defined]
    other = averaged(decay, [step for step, _ in both], [value for _, value in both])
    assert one == pytest.approx(other, rel=1e-9, abs=1e-6)  # 1e9 before the first push


@given(decays, pushes)
def test_the_average_is_the_sum_by_mass(decay: Decay, steps: Pushes) -> None:
    values = [float(i * i % 11) for i in range(len(steps))]
    newest = max(step for step, _ in steps)
    masses = [mass(decay, step, samples, newest) for step, samples in steps]
    expected = sum(m * value for m, value in zip(masses, values, strict=True)) / sum(masses)
    assert averaged(decay, steps, values) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(decays, pushes)
def test_the_mass_is_what_the_profile_gives_that_step(decay: Decay, steps: Pushes) -> None:
    """``n·wₛ``, w being the weights of the schedule's own profile at the newest step."""
    newest = max(step for step, _ in steps)
    weights = Profile.from_decay(decay, newest).weights()
    for step, samples in steps:
        assert mass(decay, step, samples, newest) == pytest.approx(samples * weights[step], abs=1e-12)


@given(st.sampled_from([0.5, 0.9, 0.999]), st.integers(1, 60))
def test_one_worker_at_each_step_of_a_constant_decay_is_debiased(beta: float, steps: int) -> None:
    weights = profile_of(polyak.Constant(beta), [(t, 1.0) for t in range(1, steps + 1)]).weights()
    expected = Profile.from_decay(polyak.Debiased(beta), steps).weights()
    np.testing.assert_allclose(weights, expected, atol=1e-12)


@given(st.integers(1, 40), st.integers(1, 5))
def test_uniform_is_the_mean_by_samples(steps: int, samples: int) -> None:
    values = [float(t % 5) for t in range(steps)]
    given_samples = [float(samples + t % 3) for t in range(steps)]
    mean = np.average(values, weights=given_samples)
    pushed = [(t + 1, n) for t, n in enumerate(given_samples)]
    assert averaged(polyak.Uniform(), pushed, values) == pytest.approx(mean, abs=1e-6)


def test_a_push_that_the_schedule_gives_nothing_changes_nothing() -> None:
    anneal = polyak.Anneal(3)
    total = Total()
    for step in (1, 2, 3):
        total, _ = counted(total, anneal, step, 1.0)
    assert counted(total, anneal, 4, 1.0) == (Total(4, total.mass), 0.0)
    assert counted(Total(), polyak.Constant(1.0), 1, 1.0) == (Total(1, 0.0), 0.0)


def profile_of(decay: Decay, steps: Pushes, own: Sequence[Profile | None] = ()) -> Profile:
    """The profile after these pushes, through JSON as a restart reads it."""
    total, noted = Total(), Contributions()
    for i, (step, samples) in enumerate(steps):
        total, _ = counted(total, decay, step, samples)
        noted.add(decay, step, samples, own[i] if own else None)
    again = Contributions.from_config(json.loads(json.dumps(noted.to_config())))
    profile = again.profile(decay, total)
    assert profile is not None
    return profile


def by_mass(decay: Decay, steps: Pushes, own: Sequence[Profile | None] = ()) -> NDArray[np.float64]:
    newest = max(step for step, _ in steps)
    out = np.zeros(newest + 1)
    for i, (step, samples) in enumerate(steps):
        pushed = own[i] if own else None
        weights = np.eye(newest + 1)[step] if pushed is None else pushed.weights()
        out[: len(weights)] += mass(decay, step, samples, newest) * weights
    return out / sum(mass(decay, step, samples, newest) for step, samples in steps)


@given(decays, st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1.0, 2.0])), min_size=1))
def test_the_profile_is_that_of_the_pushes(decay: Decay, steps: Pushes) -> None:
    profile = profile_of(decay, steps)
    np.testing.assert_allclose(profile.weights(), by_mass(decay, steps), atol=1e-9)
    assert profile.total == pytest.approx(1)
    assert profile.within == 0


@given(decays, pushes)
def test_pushed_averages_bring_their_profiles(decay: Decay, steps: Pushes) -> None:
    own = [Profile.from_decay(0.7, step) if i % 2 else None for i, (step, _) in enumerate(steps)]
    np.testing.assert_allclose(profile_of(decay, steps, own).weights(), by_mass(decay, steps, own), atol=1e-9)


def test_even_pushes_take_a_few_bytes() -> None:
    decay, noted = polyak.HalfLife(steps=100), Contributions()
    for step in range(1, 2_001):
        for _ in range(3):
            noted.add(decay, step, 32.0, None)
    assert noted.blocks == [contributions.Block(1, 2_000, 96.0)]


@pytest.mark.parametrize(
    "decay", [polyak.HalfLife(steps=2000), polyak.Uniform(), polyak.Warmup(0.999)], ids=str
)
@pytest.mark.slow
def test_uneven_pushes_are_joined_within_the_bound_they_state(
    decay: Decay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contributions, "BLOCKS", 64)
    steps = [(7 * i + 1, float(1 + i % 3)) for i in range(300)]
    profile = profile_of(decay, steps)
    assert len(profile.terms) <= 64
    error = np.abs(np.cumsum(profile.weights()) - np.cumsum(by_mass(decay, steps))).max()
    assert 0 < error <= profile.within < 0.3
    assert profile.total == pytest.approx(1)


def test_more_averages_than_are_kept_become_points_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "AVERAGES", 8)
    decay = polyak.HalfLife(steps=5)
    steps = [(i, 1.0) for i in range(1, 31)]
    own = [Profile.from_decay(0.5, step) for step, _ in steps]
    profile = profile_of(decay, steps, own)
    error = np.abs(np.cumsum(profile.weights()) - np.cumsum(by_mass(decay, steps, own))).max()
    assert 0 < error <= profile.within < 0.5


def test_nothing_counted_has_no_profile() -> None:
    assert Contributions().profile(polyak.Uniform(), Total()) is None
