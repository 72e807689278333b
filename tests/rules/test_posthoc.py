"""Post-hoc synthesis: against a dense solver, on mixtures it must find exactly, and at full size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polyak import ConfigError, Decay, Power, Profile, Uniform
from polyak.rules import solve

from .strategies import decays

LENGTH = 60
profiles = st.lists(st.tuples(decays, st.integers(0, LENGTH)), min_size=1, max_size=5).map(
    lambda made: [Profile.from_decay(decay, steps) for decay, steps in made]
)


def matrix(stored: list[Profile], points: int) -> np.ndarray:
    """S, float64 [n, points]."""
    return np.stack([np.pad(p.weights(), (0, points - p.steps - 1)) for p in stored])


def dense(stored: list[Profile], target: Profile, points: int) -> tuple[np.ndarray, float]:
    """The same problem by a general solver: Σc = 1 put in by substitution, then least squares."""
    s, w = matrix(stored, points), matrix([target], points)[0]
    free, *_ = np.linalg.lstsq((s[1:] - s[0]).T, w - s[0], rcond=None)
    c = np.concatenate(([1 - free.sum()], free))
    return c, float(np.linalg.norm(s.T @ c - w) / np.linalg.norm(w))


@given(profiles, decays)
def test_it_is_as_near_as_a_dense_solver_gets(stored: list[Profile], decay: Decay) -> None:
    singular = np.linalg.svd(matrix(stored, LENGTH + 1), compute_uv=False)
    assume(singular[-1] > 1e-4 * singular[0])  # its square is what the Gram matrix can still tell apart
    target = Profile.from_decay(decay, LENGTH)
    found, (c, error) = solve(stored, target), dense(stored, target, LENGTH + 1)
    np.testing.assert_allclose(found.coefficients, c, atol=1e-5)
    assert found.error == pytest.approx(error, abs=1e-6)


@given(profiles, decays)
def test_whatever_is_stored_the_answer_is_a_mixture_no_worse_than_the_best_of_them(
    stored: list[Profile], decay: Decay
) -> None:
    target = Profile.from_decay(decay, LENGTH)
    found = solve(stored, target)
    s, w = matrix(stored, LENGTH + 1), matrix([target], LENGTH + 1)[0]
    assert np.isfinite(found.coefficients).all()
    assert found.noise_gain == pytest.approx(np.abs(found.coefficients).sum())
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-9 * found.noise_gain)
    rounding = 1e-13 * found.noise_gain**2 / (w @ w)  # what cancels among large coefficients
    off = s.T @ found.coefficients - w
    assert found.error**2 == pytest.approx((off @ off) / (w @ w), rel=1e-6, abs=1e-12 + rounding)
    best = min(np.linalg.norm(row - w) for row in s) / np.linalg.norm(w)
    assert found.error <= best + 1e-3 + np.sqrt(rounding)


def spread() -> list[Profile]:
    """Averages that differ well: four widths at four times."""
    return [
        Profile.from_decay(Power(sigma_rel=s), t)
        for s in (0.05, 0.1, 0.15, 0.25)
        for t in (100, 200, 300, 400)
    ]


def test_coefficients_equal_the_dense_ones_where_they_are_determined() -> None:
    target = Profile.from_decay(0.99, 400)
    c, error = dense(spread(), target, 401)
    found = solve(spread(), target)
    np.testing.assert_allclose(found.coefficients, c, rtol=1e-4, atol=1e-4)
    assert found.error == pytest.approx(error, rel=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=15, max_size=15))
def test_a_target_in_the_span_is_found_exactly(drawn: list[float]) -> None:
    wanted = np.array([*drawn, 1 - sum(drawn)])
    found = solve(spread(), Profile.mix(spread(), wanted.tolist()))
    assert found.error < 1e-6
    np.testing.assert_allclose(found.coefficients, wanted, atol=1e-4)


def test_a_stored_average_is_its_own_best_synthesis() -> None:
    found = solve(spread(), spread()[5])
    np.testing.assert_allclose(found.coefficients, np.eye(16)[5], atol=1e-6)
    assert found.noise_gain == pytest.approx(1, abs=1e-5)


def test_twins_share_the_weight_instead_of_fighting() -> None:
    """A bare solve of this system answers with coefficients beyond 10⁸."""
    twins = [Profile.from_decay(beta, 2000) for beta in (0.99, 0.99, 0.99 + 1e-12, 0.995)]
    found = solve(twins, Profile.from_decay(0.993, 2000))
    assert np.isfinite(found.coefficients).all()
    assert found.noise_gain < 3
    assert found.coefficients[0] == pytest.approx(found.coefficients[1], abs=0.01)
    assert found.error < 0.05


def test_the_constraint_counts_what_each_profile_sums_to() -> None:
    doubled = [2 * profile for profile in spread()]
    plain, scaled = (solve(stored, Profile.from_decay(0.99, 400)) for stored in (spread(), doubled))
    np.testing.assert_allclose(2 * scaled.coefficients, plain.coefficients, atol=1e-6)


def snapshots(steps: int = 20_000) -> list[Profile]:
    """Two tracks, 32 snapshots each, evenly spaced."""
    return [
        Profile.from_decay(Power(sigma_rel=s), steps * i // 32) for s in (0.05, 0.1) for i in range(1, 33)
    ]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (Profile.from_decay(0.9995, 20_000), 0.003),
        (Profile.from_decay(Uniform(), 20_000, start=15_000), 0.006),
        (Profile.from_decay(Power(sigma_rel=0.075), 20_000), 0.001),
    ],
    ids=["0.9995", "mean of the last quarter", "sigma_rel 0.075"],
)
def test_a_run_of_20000_steps_gives_any_average_after_it(target: Profile, error: float) -> None:
    found = solve(snapshots(), target)
    assert error / 10 < found.error < error
    assert found.noise_gain < 4


def test_a_long_average_needs_the_beginning() -> None:
    """0.9999²⁰⁰⁰⁰ = 13.5 % rests on θ₀, which no power-function snapshot holds."""
    target = Profile.from_decay(0.9999, 20_000)
    assert solve(snapshots(), target).error > 0.95
    assert solve([Profile.raw(0), *snapshots()], target).error < 0.004


def test_nothing_stored_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"profiles=\[\].*at least one"):
        solve([], Profile.raw(3))


FULL_SIZE = """
import resource, sys, time
from polyak import Profile, Power, HalfLife
from polyak.rules import solve

steps = 1_000_000
stored = [Profile.from_decay(Power(sigma_rel=s), steps * i // 50) for s in (0.05, 0.1) for i in range(1, 51)]
begun = time.perf_counter()
found = solve(stored, Profile.from_decay(HalfLife(steps=30_000), steps))
print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, found.error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_100_profiles_of_a_million_steps() -> None:
    done = subprocess.run([sys.executable, "-c", FULL_SIZE], capture_output=True, text=True, check=True)
    seconds, peak, error = map(float, done.stdout.split())
    assert seconds < 60  # 2 on two idle cores; the rule is 20, a busy machine gets three times that
    assert peak < 1e9
    assert error < 0.01
