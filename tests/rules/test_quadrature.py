"""Quadrature: against the hats written out, exact where it must be, and where L2 would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import ConfigError, Constant, Decay, HalfLife, Profile
from polyak.rules import solve
from polyak.rules.quadrature import quadrature

from .strategies import decays

LENGTH = 60
checkpoints = st.lists(st.integers(0, LENGTH + 20), min_size=1, max_size=9, unique=True)
lengths = st.integers(0, LENGTH)


def hat(steps: list[int], i: int, t: int) -> float:
    """The i-th hat at t, by looking for its neighbours."""
    s = steps[i]
    if t == s:
        return 1.0
    beyond = [other for other in steps if (other > s) == (t > s) and other != s]
    if not beyond:
        return 1.0
    neighbour = min(beyond, key=lambda other: abs(other - s))
    return max(0.0, 1 - (t - s) / (neighbour - s))


@given(decays, lengths, checkpoints)
def test_it_is_the_sum_of_weights_under_each_hat(decay: Decay, length: int, steps: list[int]) -> None:
    profile = Profile.from_decay(decay, length)
    expected = [sum(w * hat(steps, i, t) for t, w in enumerate(profile.weights())) for i in range(len(steps))]
    found = quadrature(profile, steps)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert found.sum() == pytest.approx(profile.total, abs=1e-12)


@given(decays, lengths)
def test_with_every_step_kept_it_is_the_profile(decay: Decay, length: int) -> None:
    profile = Profile.from_decay(decay, length)
    found = quadrature(profile, range(length + 1))
    np.testing.assert_allclose(found, profile.weights(), rtol=1e-12, atol=1e-14)


@given(decays, lengths, checkpoints)
def test_a_trajectory_of_straight_lines_is_averaged_exactly(
    decay: Decay, length: int, steps: list[int]
) -> None:
    profile = Profile.from_decay(decay, length)
    values = np.random.default_rng(len(steps)).standard_normal(len(steps))
    order = np.argsort(steps)
    trajectory = np.interp(np.arange(length + 1), np.array(steps)[order], values[order])
    assert quadrature(profile, steps) @ values == pytest.approx(profile.weights() @ trajectory, abs=1e-12)


def test_windows_of_a_long_profile_are_joined_without_a_seam() -> None:
    profile = Profile.from_decay(HalfLife(steps=20_000), 100_000)
    steps = [0, 16_383, 16_384, 40_000, 99_999, 120_000]
    t = np.arange(profile.steps + 1)
    expected = [profile.weights() @ np.interp(t, steps, row) for row in np.eye(len(steps))]
    np.testing.assert_allclose(quadrature(profile, steps), expected, rtol=1e-11)


def test_between_checkpoints_l2_sees_nothing_and_quadrature_does() -> None:
    """θₜ = t, a checkpoint each 100 steps, a half-life of 250: the nearest in L2 misses it."""
    profile = Profile.from_decay(Constant(0.5 ** (1 / 250)), 5000)
    steps = list(range(0, 5001, 100))
    truth = profile.weights() @ np.arange(5001)
    nearest = solve([Profile.raw(step) for step in steps], profile).coefficients
    assert quadrature(profile, steps) @ steps == pytest.approx(truth, rel=1e-12)
    assert abs(nearest @ steps - truth) > 100


@pytest.mark.parametrize("steps", [[], [-1, 4], [5, 3, 5]])
def test_steps_that_are_no_points_of_a_run_are_refused(steps: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"steps=\[.*\]: give each checkpoint its own step, at least 0"):
        quadrature(Profile.raw(3), steps)
