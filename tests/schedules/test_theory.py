"""The theory against SGD itself: step by step, in closed form, and by simulation; and what follows from it.

The documentation's page "Theory" states each figure that is asserted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyak import (
    ConfigError,
    Debiased,
    Decay,
    HalfLife,
    Power,
    Profile,
    Uniform,
    Warmup,
    suggest_half_life,
)
from polyak.schedules.golden_section import grid
from polyak.schedules.theory import Quadratic

from .strategies import histories

Array = NDArray[np.float64]
LN2 = math.log(2)
SPECTRUM = np.arange(1, 21) ** -1.5  # λᵢ ∝ i^-1.5, the spectrum of the consequences


def moments(profile: Profile, lr: Any, curvature: float, noise: float = 1.0) -> tuple[float, float]:
    """Mean and variance in one direction, from θ₀ = 1."""
    mean, variance = Quadratic(curvature, noise, 1.0).moments(profile, lr)
    return float(mean[0]), float(variance[0])


def constant(half_life: float, steps: int) -> Profile:
    return Profile.from_decay(HalfLife(steps=half_life), steps)


def cosine(lr: float, steps: int) -> Array:
    return lr * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def cooldown(lr: float, steps: int, last: int) -> Array:
    """Constant, then linearly to zero over the last steps."""
    return lr * np.minimum(1.0, (steps - np.arange(steps)) / last)


# --- exactly ---------------------------------------------------------------------------------------


def averaged(weights: Array, rates: Array, curvature: float, start: float, noise: Array) -> float:
    """SGD, step by step, and the average of the points it passes."""
    theta, points = start, [start]
    for eta, xi in zip(rates, noise, strict=True):
        theta = theta - eta * (curvature * theta + xi)
        points.append(theta)
    return float(weights @ np.array(points))


@given(histories, st.floats(0.01, 3), st.integers(0, 2**32 - 1))
def test_it_is_sgd_with_one_kick_at_a_time(history: Any, curvature: float, seed: int) -> None:
    """The average is linear in θ₀ and in each ξₛ, so its response to each alone is all there is to know."""
    profile = Profile(((1.0, history),))
    rates = np.random.default_rng(seed).uniform(0, 0.6, profile.steps)
    weights, silence = profile.weights(), np.zeros(profile.steps)
    kicks = [averaged(weights, rates, curvature, 0.0, np.eye(profile.steps)[s]) for s in range(profile.steps)]
    mean, variance = moments(profile, rates, curvature, noise=2.0)
    assert mean == pytest.approx(averaged(weights, rates, curvature, 1.0, silence), rel=1e-9, abs=1e-12)
    assert variance == pytest.approx(4.0 * sum(kick**2 for kick in kicks), rel=1e-9, abs=1e-12)


@given(st.floats(0.5, 0.999), st.floats(0.01, 1.5), st.integers(0, 60))
def test_a_constant_rate_and_decay_have_closed_forms(beta: float, step: float, steps: int) -> None:
    """step = ηλ, with λ = 2."""
    rho, eta = 1 - step, step / 2
    if abs(beta - rho) < 1e-3:  # the limit β = ρ is the recursion's to take
        return
    mean, variance = moments(Profile.from_decay(beta, steps), eta, 2.0)
    bias = (beta ** (steps + 1) * (1 - rho) - rho ** (steps + 1) * (1 - beta)) / (beta - rho)
    assert mean == pytest.approx(bias, rel=1e-6, abs=1e-9)
    m = np.arange(1, steps + 1)
    noise = (eta * (1 - beta) / (beta - rho)) ** 2 * ((beta**m - rho**m) ** 2).sum()
    assert variance == pytest.approx(noise, rel=1e-6, abs=1e-9)


def stationary(step: float, curvature: float, noise: float = 1.0) -> float:
    """V = ησ²/(λ(2-ηλ)): the variance of the raw parameters in the end."""
    return step / curvature * noise**2 / (curvature * (2 - step))


@given(st.floats(0, 0.99), st.floats(0.05, 1.9), st.floats(0.1, 3))
def test_in_the_end_the_variance_is_a_share_of_the_raw_one(
    beta: float, step: float, curvature: float
) -> None:
    rho = 1 - step
    mean, variance = moments(Profile.from_decay(beta, 1500), step / curvature, curvature)
    share = (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)
    assert variance == pytest.approx(stationary(step, curvature) * share, rel=1e-9)
    assert abs(mean) < 1e-6


@given(st.floats(0.01, 3), st.floats(0, 3), st.floats(-3, 3), st.integers(0, 40))
def test_the_excess_sums_bias_and_variance_over_directions(
    curvature: float, noise: float, start: float, steps: int
) -> None:
    profile = constant(5, steps)
    two = Quadratic([curvature, 1.0], [noise, 0.5], [start, 2.0])
    parts = [Quadratic(curvature, noise, start), Quadratic(1.0, 0.5, 2.0)]
    assert two.excess(profile, 0.1) == pytest.approx(sum(one.excess(profile, 0.1) for one in parts))
    mean, variance = parts[0].moments(profile, 0.1)
    assert mean[0] == pytest.approx(start * moments(profile, 0.1, curvature)[0])
    assert parts[0].excess(profile, 0.1) == pytest.approx(curvature * (mean[0] ** 2 + variance[0]) / 2)


# --- by simulation ---------------------------------------------------------------------------------

STEPS, RUNS = 300, 4000
PROFILES: dict[str, Profile] = {
    "raw": Profile.raw(STEPS),
    "half-life": constant(30, STEPS),
    "uniform": Profile.from_decay(Uniform(), STEPS),
    "last third": Profile.from_decay(Uniform(), STEPS, start=200),
    "power": Profile.from_decay(Power(sigma_rel=0.1), STEPS),
    "warm-up, every fourth": Profile.from_decay(Warmup(0.99), STEPS, every=4),
}
RATES = {
    "constant": np.full(STEPS, 0.3),
    "cosine": cosine(0.3, STEPS),
    "cooldown": cooldown(0.3, STEPS, 60),
}
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda random, shape: random.normal(size=shape),
    "heavy tails": lambda random, shape: random.laplace(scale=0.5**0.5, size=shape),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rates", RATES)
def test_simulated_losses_are_those_of_the_theory(rates: str, law: str) -> None:
    """6 profiles × 3 rates × 2 laws, each within 5 %: an error of sampling is 1 % here."""
    curvature, noise, start = np.arange(1, 11) ** -1.5, 0.7, 1.0
    random = np.random.default_rng(0)
    weights = {name: profile.weights() for name, profile in PROFILES.items()}
    theta = np.full((RUNS, 10), start)
    averages = {name: weight[0] * theta for name, weight in weights.items()}
    for s, eta in enumerate(RATES[rates], 1):
        theta = theta - eta * (curvature * theta + noise * LAWS[law](random, theta.shape))
        for name, weight in weights.items():
            averages[name] = averages[name] + weight[s] * theta
    for name, profile in PROFILES.items():
        simulated = float((0.5 * curvature * averages[name] ** 2).sum(1).mean())
        expected = Quadratic(curvature, noise, start).excess(profile, RATES[rates])
        assert simulated == pytest.approx(expected, rel=0.05), name


# --- what follows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [500, 2000, 10_000])
@pytest.mark.parametrize("step", [0.001, 0.01, 0.1, 1.0])
def test_a_an_average_has_the_noise_of_a_smaller_rate_to_a_thousandth(age: int, step: float) -> None:
    """Mean age τ = β/(1-β): the noise of SGD at η/(1+ηλτ), λ = 1; to 1/(2τ) at any age."""
    for tau, within in ((age, 0.001), (age / 50, 25 / age)):
        beta, rho = tau / (1 + tau), 1 - step
        averaged = stationary(step, 1.0) * (1 - beta) / (1 + beta) * (1 + beta * rho) / (1 - beta * rho)
        assert averaged == pytest.approx(stationary(step / (1 + step * tau), 1.0), rel=within)


def test_a_without_the_slowness_of_a_smaller_rate() -> None:
    """After 300 steps the average is nearer to the minimum than SGD at the rate whose noise it has."""
    steps, step, tau = 300, 0.1, 50
    average, _ = moments(Profile.from_decay(tau / (1 + tau), steps), step, 1.0)
    slow, _ = moments(Profile.raw(steps), step / (1 + step * tau), 1.0)
    assert abs(average) < abs(slow) / 1.5


@pytest.mark.parametrize("ratio", [1, 10, 1000])
@pytest.mark.parametrize(("travel", "within"), [(10, 0.25), (40, 0.06), (200, 0.02), (400, 0.02)])
def test_b_the_best_half_life_of_a_converged_direction(travel: float, within: float, ratio: float) -> None:
    """``h* = 2 ln2·T / ln(2ηλT·θ₀²/V)``; travel = ηλT, ratio = θ₀²/V, λ = 1."""
    steps, eta = 2000, travel / 2000
    problem = Quadratic(1.0, 1.0, math.sqrt(ratio * stationary(eta, 1.0)))
    best = suggest_half_life(steps, eta, problem).steps
    assert best == pytest.approx(2 * LN2 * steps / math.log(2 * travel * ratio), rel=within)


@pytest.mark.parametrize("step", [0.003, 0.01])
def test_c_a_larger_batch_with_a_larger_rate_wants_the_scaled_decay(step: float) -> None:
    """k = 8: 8000 steps at ηλ, h = 500, against 1000 steps at 8ηλ with β⁸, or with β kept."""
    k, steps, h, curvature = 8, 8000, 500, step / 0.01
    mean, variance = moments(constant(h, steps), 0.01, curvature)
    scaled = moments(constant(h / k, steps // k), 0.01 * k, curvature, noise=k**-0.5)
    kept = moments(constant(h, steps // k), 0.01 * k, curvature, noise=k**-0.5)
    assert scaled == (pytest.approx(mean, rel=0.016), pytest.approx(variance, rel=0.006))
    assert kept[0] > 100 * mean
    assert kept[1] < 0.2 * variance  # it is mostly the start


def best_over_raw(steps: int, rates: Array) -> float:
    problem = Quadratic(SPECTRUM, 0.3, 1.0)
    best = Profile.from_decay(suggest_half_life(steps, rates, problem), steps)
    return problem.excess(best, rates) / problem.excess(Profile.raw(steps), rates)


@pytest.mark.parametrize(
    ("steps", "constant_rate", "cosine_rate"), [(500, 0.273, 0.885), (4000, 0.062, 0.698)]
)
@pytest.mark.slow
def test_d_a_rate_that_goes_to_zero_leaves_little_to_average(
    steps: int, constant_rate: float, cosine_rate: float
) -> None:
    assert best_over_raw(steps, np.full(steps, 0.5)) == pytest.approx(constant_rate, abs=0.002)
    assert best_over_raw(steps, cosine(0.5, steps)) == pytest.approx(cosine_rate, abs=0.002)
    best = suggest_half_life(steps, 0.5, Quadratic(SPECTRUM, 0.3, 1.0)).steps
    assert best is not None
    assert 1 / 5 < best / steps < 1 / 3


@pytest.mark.parametrize("travel", [0.004, 0.04, 0.4, 40, 120, 400])
def test_e_the_mean_of_the_last_steps_is_an_anneal_with_less_noise(travel: float) -> None:
    """The last 400 of 4000 steps at η = 0.1; travel = ηλ·400."""
    steps, last, eta = 4000, 400, 0.1
    curvature = travel / last / eta
    mean, variance = moments(Profile.from_decay(Uniform(), steps, start=steps - last), eta, curvature)
    annealed = moments(Profile.raw(steps), cooldown(eta, steps, last), curvature)
    if travel < 1:
        assert (mean, variance) == (
            pytest.approx(annealed[0], rel=0.01),
            pytest.approx(annealed[1], rel=0.01),
        )
    else:
        assert 0.1 < variance / annealed[1] < 0.35


@pytest.mark.parametrize(("steps", "in_time", "with_rate"), [(500, 1.056, 1.130), (2000, 0.958, 1.302)])
def test_windows_that_follow_a_cosine_rate_gain_little_or_nothing(
    steps: int, in_time: float, with_rate: float
) -> None:
    """The least loss of each rule over that of the best plain half-life: why there is no such schedule."""
    rates, problem = cosine(0.5, steps), Quadratic(SPECTRUM, 0.3, 1.0)
    share = rates / 0.5

    def least(rule: Callable[[float, int], float]) -> float:
        profiles = (Profile.from_decay(lambda t, h=h: rule(h, t), steps) for h in grid(0.1, 10 * steps, 25))
        return min(problem.excess(profile, rates) for profile in profiles)

    plain = problem.excess(Profile.from_decay(suggest_half_life(steps, rates, problem), steps), rates)
    assert least(lambda h, t: 2 ** (-share[t - 1] / h)) / plain == pytest.approx(in_time, abs=0.002)
    narrowing = least(lambda h, t: 2 ** (-1 / (h * share[t - 1])))
    assert narrowing / plain == pytest.approx(with_rate, abs=0.002)
    assert narrowing == pytest.approx(problem.excess(Profile.raw(steps), rates), rel=1e-6)


# --- the suggestion --------------------------------------------------------------------------------


@given(
    st.integers(1, 200),
    st.floats(0.01, 0.9),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=3),
    st.floats(0.01, 3),
    st.floats(0.1, 100),
)
@pytest.mark.slow
def test_no_half_life_is_much_better_than_the_suggested_one(
    steps: int, lr: float, curvature: list[float], noise: float, other: float
) -> None:
    problem = Quadratic(curvature, noise, 1.0)

    def loss(decay: Decay) -> float:
        return problem.excess(Profile.from_decay(decay, steps), lr)

    suggested = loss(suggest_half_life(steps, lr, problem))
    assert suggested <= 1.02 * loss(HalfLife(steps=other * steps / 10))
    assert suggested <= 1.01 * problem.excess(Profile.raw(steps), lr)


def test_the_schedule_of_the_rate_is_in_the_suggestion() -> None:
    problem = Quadratic(SPECTRUM, 0.3, 1.0)
    assert suggest_half_life(500, 0.5, problem).steps == pytest.approx(136.4, rel=0.01)
    short = cooldown(0.5, 500, 500)
    assert suggest_half_life(500, short, problem) == suggest_half_life(500, list(short), problem)
    assert suggest_half_life(500, short, problem) != suggest_half_life(500, 0.5, problem)


def test_a_bias_corrected_average_is_the_same_in_a_long_run() -> None:
    problem = Quadratic(SPECTRUM, 0.3, 1.0)
    plain, debiased = (Profile.from_decay(d, 2000) for d in (HalfLife(steps=50), Debiased(2 ** (-1 / 50))))
    assert problem.excess(plain, 0.5) == pytest.approx(problem.excess(debiased, 0.5), rel=1e-6)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 1.0), "curvature=0.0: must be positive"),
        (([1.0, -1.0], 1.0, 1.0), "must be positive"),
        ((1.0, -1.0, 1.0), "noise=-1.0: a standard deviation cannot be negative"),
        ((1.0, 1.0, math.nan), "start=nan: must be one finite number"),
        (([[1.0]], 1.0, 1.0), "must be one finite number or one per direction"),
        (([1.0, 2.0], [1.0, 1.0, 1.0], 1.0), "curvature has 2, noise has 3, start has 1"),
    ],
    ids=str,
)
def test_a_problem_that_is_none_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quadratic(*arguments)


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ([0.1] * 9, r"lr has shape \(9,\): give one number, or one per step, \(10,\)"),
        (-0.1, "lr=-0.1: learning rates must be finite and at least 0"),
        (math.nan, "lr=nan"),
        (1e200, "above 2 training diverges"),
    ],
    ids=str,
)
def test_a_rate_that_is_none_is_refused(lr: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quadratic(1.0, 1.0, 1.0).excess(Profile.raw(10), lr)


def test_a_run_of_no_steps_has_no_half_life() -> None:
    with pytest.raises(ConfigError, match="steps=0"):
        suggest_half_life(0, 0.1, Quadratic(1.0, 1.0, 1.0))
