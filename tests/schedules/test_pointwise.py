"""Weights of checkpoints by age: against the definitions, and against the sum written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import ConfigError, Recency
from polyak.schedules.pointwise import annealed

rising = st.lists(st.integers(0, 10**9), min_size=1, max_size=40, unique=True).map(sorted)
FACTORS = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - np.sqrt(x),
}


@given(rising, st.floats(1e-3, 1e12))
def test_recency_halves_with_its_age(steps: list[int], half: float) -> None:
    weights = Recency(half).weights(steps)
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) >= 0).all()
    wanted = weights[-1] * 0.5 ** ((steps[-1] - np.array(steps)) / half)
    np.testing.assert_allclose(weights, wanted, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("steps", [0, -1, float("nan"), float("inf")])
def test_a_recency_is_a_positive_number(steps: float) -> None:
    with pytest.raises(ConfigError, match="positive number of training steps"):
        Recency(steps)


@pytest.mark.parametrize("shape", FACTORS)
@given(steps=rising)
def test_annealed_weights_are_those_of_an_average(shape: str, steps: list[int]) -> None:
    weights = annealed(steps, shape)  # type: ignore[arg-type]
    assert weights.sum() == pytest.approx(1)
    assert (weights >= -1e-7).all()


@pytest.mark.parametrize("shape", FACTORS)
def test_the_mean_is_what_the_smaller_steps_would_have_reached(shape: str) -> None:
    """A walk whose steps are scaled by the factor, against the mean of all its points as they are."""
    points = np.arange(2001)
    moves = np.random.default_rng(0).standard_normal((2000, 3))
    walk = np.concatenate([np.zeros((1, 3)), np.cumsum(moves, axis=0)])
    smaller = (FACTORS[shape]((points[1:] - 0.5) / 2000)[:, None] * moves).sum(axis=0)
    np.testing.assert_allclose(annealed(list(points + 500), shape) @ walk, smaller, atol=0.05)  # type: ignore


def test_shapes_have_names() -> None:
    with pytest.raises(ConfigError, match="shape='square': must be one of linear, cosine, 1-sqrt"):
        annealed([1, 2], "square")  # type: ignore[arg-type]
    assert annealed([7], "linear").tolist() == [1.0]
