"""What the tests of the rules draw: any decay, any history, any mixture, and the slow way to use them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from polyak import (
    Anneal,
    Capped,
    Constant,
    Cosine,
    Custom,
    Debiased,
    Decay,
    HalfLife,
    Piecewise,
    Power,
    Profile,
    Ramp,
    Scaled,
    Uniform,
    Warmup,
)
from polyak.schedules import Run

betas = st.one_of(
    st.sampled_from([0.0, 0.5, 0.9, 0.999, 0.9999, 0.9999999, 1.0]),
    st.floats(0, 1, allow_subnormal=False),
)
scales = st.floats(0.01, 1e5)
warmups = betas.flatmap(
    lambda beta: st.builds(
        Warmup, st.just(beta), scales, st.floats(0.05, 3), st.floats(0, beta), st.integers(0, 50)
    )
)
simple_decays = st.one_of(
    betas.map(Constant),
    scales.map(lambda h: HalfLife(steps=h)),
    st.floats(0.001, 0.5).map(lambda s: HalfLife(share=s)),
    betas.map(Debiased),
    warmups,
    st.builds(Ramp, betas, scales),
    st.builds(Capped, betas, st.integers(0, 9)),
    st.just(Uniform()),
    st.floats(0.01, 0.288).map(lambda s: Power(sigma_rel=s)),
    st.floats(0, 50).map(lambda g: Power(gamma=g)),
    st.builds(Anneal, st.integers(1, 200), st.sampled_from(["linear", "cosine"])),
    st.builds(Cosine, betas, betas, st.integers(1, 200)),
)


@st.composite
def piecewise(draw: st.DrawFn) -> Decay:
    ends = sorted(draw(st.sets(st.integers(1, 120), max_size=3)))
    return Piecewise([(end, draw(simple_decays)) for end in [*ends, None]])


decays = st.one_of(simple_decays, piecewise())

# One of each, for what is too slow to draw.
ONE_OF_EACH: dict[str, Decay] = {
    "Constant": Constant(0.9998),
    "HalfLife": HalfLife(steps=5000),
    "HalfLife in samples": HalfLife(samples=640_000),
    "HalfLife in tokens": HalfLife(tokens=10**9),
    "HalfLife as a share": HalfLife(share=0.05),
    "Debiased": Debiased(0.9999),
    "Warmup": Warmup(0.9998, gamma=2.0, power=0.75, min_decay=0.1, after=100),
    "Ramp": Ramp(0.9999, tau=2000),
    "Capped": Capped(0.9999),
    "Uniform": Uniform(),
    "Power by width": Power(sigma_rel=0.1),
    "Power by exponent": Power(gamma=6.94),
    "Anneal": Anneal(5_000),
    "Cosine": Cosine(0.996, 1.0, total=30_000),
    "Scaled": Scaled(Warmup(0.9998), 2.5),
    "Piecewise": Piecewise([(1000, 0.9), (20_000, Warmup(0.9998)), (None, 0.9999)]),
}
SCHEDULES = {**ONE_OF_EACH, "Custom": Custom(lambda t: min(0.9, t / (t + 10)), "mine")}

skips = st.builds(Run, st.just(Constant(1.0)), st.just(0), st.integers(1, 5), st.integers(1, 3), st.just(1))
restarts = st.builds(Run, st.just(Constant(0.0)), st.just(0), st.just(1), st.integers(0, 3), st.just(1))
updates = st.builds(
    Run, decays, st.integers(0, 100), st.integers(1, 30), st.integers(1, 4), st.integers(1, 4)
)
histories = st.lists(st.one_of(updates, skips, restarts), max_size=5).map(tuple)
mixtures = st.lists(st.tuples(st.floats(-2, 2), histories), min_size=1, max_size=3).map(
    lambda terms: Profile(tuple(terms))
)


def trajectory(steps: int, seed: int) -> np.ndarray:
    """θ₀ … θ_steps: float64 [steps + 1] in [-1, 1], so that absolute errors are relative ones."""
    return np.random.default_rng(seed).uniform(-1, 1, steps + 1)


def recursed(runs: tuple[Run, ...], theta: np.ndarray) -> float:
    """The average one gets by doing what the runs say, step by step and multiplying β one by one."""
    average, point = theta[0], 0
    for run in runs:
        for j in range(run.count):
            point += run.stride
            beta = 1.0
            for i in range(run.advance):
                beta *= run.decay(run.clock + j * run.advance + i + 1)
            average = beta * average + (1 - beta) * theta[point]
    return float(average)
