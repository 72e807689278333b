"""Decays for another batch size: the same samples get the same weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import (
    ConfigError,
    Constant,
    Custom,
    Debiased,
    Decay,
    HalfLife,
    Power,
    Profile,
    Scaled,
    Uniform,
    Warmup,
    compose,
    scale_decay,
)
from polyak.schedules.decay import composed

from .strategies import decays

STEPS = decays.filter(lambda decay: decay.unit == "steps")
RATIOS = st.one_of(st.sampled_from([1 / 16, 0.1, 1 / 3, 0.5, 1.5, 2.5, 10 / 3]), st.floats(0.05, 20))


def slowly(decay: Decay, begin: float, end: float) -> float:
    """The product over the steps from begin to end, each to the power of its part in between."""
    out = 1.0
    for n in range(math.floor(begin + 1e-9), math.ceil(end - 1e-9)):
        part = min(end, n + 1) - max(begin, n)
        out *= decay(n + 1) ** part
    return out


@given(STEPS, st.integers(1, 9), st.integers(0, 40), st.integers(1, 5))
def test_one_step_is_k_of_the_old_exactly(decay: Decay, k: int, t: int, count: int) -> None:
    scaled = Scaled(decay, k)
    assert scaled(t + 1) == compose(decay, t * k, k)
    assert compose(scaled, t, count) == compose(decay, t * k, count * k)


@given(STEPS, RATIOS, st.integers(0, 40), st.integers(1, 5))
def test_between_the_steps_it_is_log_linear(decay: Decay, ratio: float, t: int, count: int) -> None:
    expected = slowly(decay, t * ratio, (t + count) * ratio)
    assert compose(Scaled(decay, ratio), t, count) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(STEPS, RATIOS, st.integers(0, 20), st.integers(1, 5), st.integers(1, 5))
def test_steps_taken_at_once_are_those_taken_singly(
    decay: Decay, ratio: float, t: int, a: int, b: int
) -> None:
    scaled = Scaled(decay, ratio)
    one_by_one = compose(scaled, t, a) * compose(scaled, t + a, b)
    assert compose(scaled, t, a + b) == pytest.approx(one_by_one, rel=1e-6, abs=1e-12)


@given(decays, st.integers(2, 8), st.integers(1, 25))
def test_the_same_samples_have_the_same_weight(decay: Decay, k: int, steps: int) -> None:
    """Whatever form the result has: the weight of all samples up to each large step is the old one."""
    if isinstance(decay, (Uniform, Power, HalfLife)):
        return  # measured in the run already; the rest of HalfLife is in the table below
    large = Profile.from_decay(scale_decay(decay, k), steps).weights().cumsum()
    small = Profile.from_decay(decay, steps * k).weights().cumsum()
    np.testing.assert_allclose(large, small[::k], atol=1e-9)


@pytest.mark.parametrize(
    ("decay", "ratio", "scaled"),
    [
        (0.9, 2, 0.9**2),
        (1, 8, 1),
        (0, 8, 0),
        (Constant(0.9), 2, Constant(0.9**2)),
        (Debiased(0.99), 0.5, Debiased(0.99**0.5)),
        (HalfLife(steps=1000), 8, HalfLife(steps=125)),
        (HalfLife(samples=1000), 8, HalfLife(samples=1000)),
        (HalfLife(tokens=1000), 8, HalfLife(tokens=1000)),
        (HalfLife(share=0.05), 8, HalfLife(share=0.05)),
        (Uniform(), 8, Uniform()),
        (Power(sigma_rel=0.1), 8, Power(sigma_rel=0.1)),
        (Warmup(0.999), 8, Scaled(Warmup(0.999), 8)),
        (Scaled(Warmup(0.999), 8), 0.25, Scaled(Warmup(0.999), 2)),
    ],
    ids=str,
)
def test_each_kind_has_its_own_form(decay: Any, ratio: float, scaled: Any) -> None:
    found = scale_decay(decay, ratio)
    assert found == scaled
    assert isinstance(found, Decay) == isinstance(decay, Decay)


def test_a_teacher_at_a_smaller_batch() -> None:
    assert round(scale_decay(0.996, 256 / 4096), 5) == 0.99975


def a_third(t: int) -> float:
    return (t - 1) / (t + 2)


def test_a_function_is_asked_for_whole_steps_and_none_beyond_the_last() -> None:
    asked: list[int] = []

    def rule(t: int) -> float:
        asked.append(t)
        return a_third(t)

    scaled = scale_decay(rule, 2.5)
    assert isinstance(scaled, Scaled)
    asked.clear()
    assert compose(scaled, 0, 2) == pytest.approx(math.prod(a_third(t) for t in range(1, 6)))
    assert (min(asked), max(asked)) == (1, 5)
    assert scaled.ahead == Custom(rule).ahead == 1


def test_a_copying_step_does_not_reach_into_the_next_by_rounding() -> None:
    """49 · (1/49) is 0.9999999999999999; of a step with β = 0 even the part that is left would copy."""
    scaled = Scaled(Warmup(0.9), 1 / 49)  # the first step copies
    assert [t for t in range(1, 60) if scaled(t) == 0] == list(range(1, 50))


def test_many_decays_at_once_are_those_of_single_steps() -> None:
    """The number of whole old steps in a new one differs: two or three, and none or one."""
    for ratio in (2.5, 10 / 3, 0.7):
        scaled = Scaled(Warmup(0.999), ratio)
        assert composed(scaled, 0, 1, 40).tolist() == [scaled(t) for t in range(1, 41)]
        assert composed(scaled, 3, 2, 20).tolist() == [compose(scaled, 3 + 2 * i, 2) for i in range(20)]


@given(STEPS, RATIOS)
def test_it_comes_back_from_a_file(decay: Decay, ratio: float) -> None:
    assert Decay.from_config(Scaled(decay, ratio).to_config()) == Scaled(decay, ratio)


def test_of_a_function_a_file_has_the_name() -> None:
    config = Scaled(Custom(a_third), 2).to_config()
    assert config == {"kind": "Scaled", "decay": {"kind": "Custom", "name": "a_third"}, "ratio": 2}
    profile = Profile.from_decay(Scaled(Custom(a_third), 2), 5)
    assert not Profile.from_json(profile.to_json()).known


@pytest.mark.parametrize("ratio", [0, -1, math.nan, math.inf])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match=r"batch_ratio=.*must be positive and finite"):
        scale_decay(0.9, ratio)
    with pytest.raises(ConfigError, match=r"ratio=.*must be positive and finite"):
        Scaled(Warmup(0.9), ratio)


def test_samples_are_not_scaled() -> None:
    with pytest.raises(ConfigError, match="counts samples, which do not depend on the batch size"):
        Scaled(HalfLife(samples=100), 2)
    with pytest.raises(ConfigError, match="must be a number in"):
        scale_decay("0.9", 2)  # pyright: ignore[reportArgumentType, reportCallIssue]
