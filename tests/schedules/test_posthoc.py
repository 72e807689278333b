"""Post-hoc synthesis: against a dense solver, on mixtures it must find exactly, and at full size."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polyak import ConfigError, Decay, HalfLife, Power, Profile, Uniform
from polyak.schedules import solve
from polyak.schedules.posthoc import STEADY, Movement, movement_of
from tests.work import lines_run

from .strategies import decays

LENGTH = 60
profiles = st.lists(st.tuples(decays, st.integers(0, LENGTH)), min_size=1, max_size=5).map(
    lambda made: [Profile.from_decay(decay, steps) for decay, steps in made]
)


def matrix(stored: list[Profile], points: int, movement: Movement = STEADY) -> np.ndarray:
    """``Rᵢ(t)·√vₜ`` for t = 1 … T, float64 [n, points - 1]: what each average holds of each step."""
    weights = np.stack([np.pad(p.weights(), (0, points - p.steps - 1)) for p in stored])
    rates = np.array([movement.at(np.float64(t)) for t in range(1, points)])
    return weights[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] * np.sqrt(rates)


def away(target: Profile, points: int, movement: Movement = STEADY) -> float:
    """The distance from the raw parameters, in which errors are given."""
    return float(np.linalg.norm(np.subtract(*matrix([target, Profile.raw(points - 1)], points, movement))))


def dense(
    stored: list[Profile],
    target: Profile,
    points: int,
    movement: Movement = STEADY,
    rounding: list[float] | None = None,
) -> tuple[np.ndarray, float]:
    """The same problem by a general solver: Σc = 1 put in by substitution, then least squares."""
    r, w = matrix(stored, points, movement), matrix([target], points, movement)[0]
    errors = np.diag(np.sqrt(rounding or np.zeros(len(stored))))
    r, w = np.hstack([r, errors]), np.hstack([w, np.zeros(len(stored))])
    free, *_ = np.linalg.lstsq((r[1:] - r[0]).T, w - r[0], rcond=None)
    c = np.concatenate(([1 - free.sum()], free))
    return c, float(np.linalg.norm(r.T @ c - w)) / away(target, points, movement)


movements = st.lists(st.floats(0.01, 100), min_size=1, max_size=5).map(
    lambda rates: Movement([LENGTH * (i + 1) // len(rates) for i in range(len(rates))], rates)
)


@given(profiles, decays, movements, st.floats(0, 1))
@pytest.mark.slow
def test_it_is_as_near_as_a_dense_solver_gets(
    stored: list[Profile], decay: Decay, movement: Movement, noise: float
) -> None:
    held = matrix(stored, LENGTH + 1, movement)
    singular = np.linalg.svd(held, compute_uv=False)
    assume(singular[-1] > 1e-4 * singular[0] > 0)  # its square is what the Gram matrix can still tell apart
    target = Profile.from_decay(decay, LENGTH)
    assume(away(target, LENGTH + 1, movement) > 1e-3)
    rounding = [noise * (i + 1) for i in range(len(stored))]
    found = solve(stored, target, movement, rounding)
    c, error = dense(stored, target, LENGTH + 1, movement, rounding)
    np.testing.assert_allclose(found.coefficients, c, atol=1e-4)
    assert found.error == pytest.approx(error, rel=1e-4, abs=1e-4)


@given(profiles, decays)
def test_whatever_is_stored_the_answer_is_a_mixture_no_worse_than_the_best_of_them(
    stored: list[Profile], decay: Decay
) -> None:
    target = Profile.from_decay(decay, LENGTH)
    assume(away(target, LENGTH + 1) > 1e-3)
    found = solve(stored, target)
    r, w = matrix(stored, LENGTH + 1), matrix([target], LENGTH + 1)[0]
    assert np.isfinite(found.coefficients).all()
    assert found.noise_gain == pytest.approx(np.abs(found.coefficients).sum())
    assert math.fsum(found.coefficients) == pytest.approx(1, abs=1e-12)
    off = np.linalg.norm(r.T @ found.coefficients - w) / away(target, LENGTH + 1)
    rounding = 1e-6 * found.noise_gain / away(target, LENGTH + 1)  # what cancels among large coefficients
    assert found.error == pytest.approx(off, rel=1e-4, abs=1e-5 + rounding)
    best = min(np.linalg.norm(row - w) for row in r) / away(target, LENGTH + 1)
    assert found.error <= best + 1e-3 + rounding


def test_the_error_is_that_of_random_walks() -> None:
    """Made and wanted averages of 400 walks whose pace changes, rounded as the snapshots are."""
    random, movement, rho = np.random.default_rng(0), Movement([100, 400], [9.0, 0.25]), 0.5
    stored, target = [*spread(), Profile.raw(0)], Profile.from_decay(0.98, 400)
    found = solve(stored, target, movement, [rho] * len(stored))
    pace = np.sqrt(movement.at(np.arange(1.0, 401)))
    steps = random.normal(size=(4000, 400)) * pace
    theta = np.concatenate([random.normal(size=(4000, 1)), steps], axis=1).cumsum(axis=1)
    weights = np.stack([np.pad(p.weights(), (0, 400 - p.steps)) for p in stored])
    kept = theta @ weights.T + random.normal(size=(4000, len(stored))) * np.sqrt(rho)
    wanted = theta @ target.weights()
    missed = np.mean((kept @ found.coefficients - wanted) ** 2) / np.mean((wanted - theta[:, -1]) ** 2)
    assert np.sqrt(missed) == pytest.approx(found.error, rel=0.05)


@given(st.lists(st.integers(0, LENGTH), min_size=1, max_size=6, unique=True), decays)
def test_raw_checkpoints_are_interpolated(steps: list[int], decay: Decay) -> None:
    target = Profile.from_decay(decay, LENGTH)
    found = solve([Profile.raw(step) for step in steps], target)
    hats = [np.interp(np.arange(LENGTH + 1), sorted(steps), np.eye(len(steps))[i]) for i in range(len(steps))]
    expected = dict(zip(sorted(steps), np.array(hats) @ target.weights(), strict=True))
    np.testing.assert_allclose(found.coefficients, [expected[step] for step in steps], atol=1e-6)


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
        (Profile.from_decay(0.9995, 20_000), 0.0003),
        (Profile.from_decay(Uniform(), 20_000, start=15_000), 0.0005),
        (Profile.from_decay(Power(sigma_rel=0.075), 20_000), 0.0001),
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
    without, held = solve(snapshots(), target), solve([Profile.raw(0), *snapshots()], target)
    assert without.error > 0.04
    assert held.error < 0.002


def test_nothing_stored_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"profiles=\[\].*at least one"):
        solve([], Profile.raw(3))


FULL_SIZE = """
import re
from pathlib import Path
from polyak import Profile, Power, HalfLife
from polyak.schedules import solve
from polyak.schedules.posthoc import STEADY, Movement, movement_of

steps = 1_000_000
stored = [Profile.from_decay(Power(sigma_rel=s), steps * i // 50) for s in (0.05, 0.1) for i in range(1, 51)]
found = solve(stored, Profile.from_decay(HalfLife(steps=30_000), steps))
# Not ru_maxrss, which begins with the size of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(peak, found.error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is on Linux only")
def test_100_profiles_of_a_million_steps() -> None:
    done = subprocess.run([sys.executable, "-c", FULL_SIZE], capture_output=True, text=True, check=True)
    peak, error = map(float, done.stdout.split())
    assert peak < 1e9
    assert error < 0.01


def test_the_steps_of_100_profiles_are_taken_together() -> None:
    steps = 100_000
    stored = [
        Profile.from_decay(Power(sigma_rel=s), steps * i // 50) for s in (0.05, 0.1) for i in range(1, 51)
    ]
    wanted = Profile.from_decay(HalfLife(steps=3000), steps)
    assert lines_run(lambda: solve(stored, wanted)) < 2 * steps  # profile by profile it would be 100 a step


def test_the_pace_is_read_off_the_averages() -> None:
    """A walk of a million dimensions that slows down a hundredfold, and the distances its averages keep."""
    pace = Movement([200, 400], [4.0, 0.04])
    stored = [Profile.from_decay(Power(gamma=30), t) for t in (100, 200, 300, 400)]
    apart = [away(p, p.steps + 1, pace) ** 2 for p in stored]
    wide = Profile.from_decay(Uniform(), 400)
    found = movement_of([*stored, wide], [*apart, away(wide, 401, pace) ** 2])
    assert found.ends == [100, 200, 300, 400]
    assert found.rates[:2] == pytest.approx([4.0, 4.0])
    assert found.rates[3] == pytest.approx(0.04, rel=0.2)


def test_what_never_moved_moves_at_a_steady_pace() -> None:
    assert movement_of([Profile.raw(3)], [0.0]) == STEADY
    assert movement_of([Profile.from_decay(0.9, 10)], [0.0]) == STEADY
