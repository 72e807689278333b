"""Decays of one's own: any function of t, and what of it a file can keep."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak import ConfigError, Custom, Decay, Piecewise, Profile, Uniform, Warmup, compose, reference
from polyak.schedules import as_decay, replay
from polyak.schedules.decay import Unknown, decay_in_file


def rising(t: int) -> float:
    """wₜ ∝ t."""
    return (t - 1) / (t + 1)


@given(st.integers(0, 200), st.integers(1, 7), st.integers(0, 20))
def test_a_function_averages_as_the_decay_it_computes(steps: int, every: int, start: int) -> None:
    own = Profile.from_decay(lambda t: (t - 1) / t, steps, every=every, start=start)
    same = Profile.from_decay(Uniform(), steps, every=every, start=start)
    assert own.weights() == pytest.approx(same.weights(), abs=1e-12)


@given(st.integers(1, 10**9), st.integers(1, 30))
def test_it_composes(t: int, k: int) -> None:
    stepped = math.prod(rising(t + i) for i in range(1, k + 1))
    assert compose(rising, t, k) == pytest.approx(stepped, rel=1e-12)


def test_it_stands_wherever_a_decay_may() -> None:
    assert as_decay(rising) == Custom(rising)
    assert Piecewise([(10, rising), (None, 0.99)])(3) == 0.5
    assert compose(rising, 0, 3) == 0
    kept = Profile.from_decay(0.9, 20)
    assert replay(kept, rising, 10) == Profile.from_decay(rising, 10)
    state = reference.init({"w": np.zeros(1)}, rising)
    assert reference.update(state, {"w": np.ones(1)}).average["w"] == 1


def test_its_name_is_the_functions_own_or_the_one_given() -> None:
    assert repr(Custom(rising)) == "Custom('rising')"
    assert Custom(rising, "mine").to_config() == {"kind": "Custom", "name": "mine"}
    assert Custom(partial(pow, 0.5)).name == "partial"


def test_two_functions_of_one_name_are_two_decays() -> None:
    """Else the averages of one would be given the weights of the other."""
    low, high = Custom(lambda t: 0.1, "f"), Custom(lambda t: 0.9, "f")
    assert low != high
    both = Profile.from_decay(low, 9) + Profile.from_decay(high, 9)
    apart = Profile.from_decay(0.1, 9).weights() + Profile.from_decay(0.9, 9).weights()
    assert both.weights() == pytest.approx(apart)
    assert (both.mean_age, Profile.from_decay(low, 9).mean_age) == pytest.approx(
        ((Profile.from_decay(0.1, 9) + Profile.from_decay(0.9, 9)).mean_age, 1 / 9), abs=1e-6
    )


def test_a_file_keeps_the_name_and_the_history() -> None:
    profile = Profile.from_decay(rising, 9)
    read = Profile.from_json(profile.to_json())
    assert (read.steps, read.known, profile.known) == (9, False, True)
    [decay] = {run.decay for _, runs in read.terms for run in runs}
    assert str(decay) == "Custom('rising'), a function, which is not in the file"
    assert read.to_json() == profile.to_json()
    with pytest.raises(ConfigError, match=r"'rising'.*make the EMA with the same function"):
        read.weights()


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"kind": "Sawtooth", "period": 5}, "Sawtooth(period=5), which is not known here"),
        ({"kind": "Piecewise", "pieces": [[9, {"kind": "Custom", "name": "f"}], [None, 0.9]]}, "Piecewise("),
    ],
)
def test_a_kind_of_another_program_is_shown(config: Any, shown: str) -> None:
    decay = decay_in_file(json.loads(json.dumps(config)))
    assert isinstance(decay, Unknown)
    assert str(decay).startswith(shown)
    assert decay.to_config() == config
    with pytest.raises(ConfigError, match="unknown"):
        decay(1)


def test_a_kind_that_is_known_is_itself() -> None:
    assert decay_in_file(Warmup(0.9).to_config()) == Warmup(0.9)


@pytest.mark.parametrize("config", [{}, {"kind": 3}, {"kind": ["Custom"]}, {"kind": "Constant", "beta": 2}])
def test_what_describes_no_decay_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError):
        decay_in_file(config)


REFUSED: list[tuple[Any, list[str]]] = [
    (lambda t: 1.5, ["(1)=1.5", "[0, 1]"]),
    (lambda t: math.nan, ["(1)=nan", "[0, 1]"]),
    (lambda: 0.9, ["(1) raised", "t = 1, 2"]),
    (lambda t: None, ["(1) raised", "t = 1, 2"]),
    (lambda t: 1 / (t - 1), ["ZeroDivisionError"]),
    (Uniform, ["Uniform", "is a class", "Uniform(…)"]),
    ("0.9", ["'0.9'", "a function of the step t"]),
    (True, ["True", "number in [0, 1]"]),
]


@pytest.mark.parametrize(("decay", "words"), REFUSED)
def test_what_is_no_decay_is_refused_before_it_is_used(decay: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        as_decay(decay)
    assert [word for word in words if word not in str(refused.value)] == []


def test_one_that_leaves_its_range_later_is_refused_then() -> None:
    decay = as_decay(lambda t: t / 10)
    assert decay(10) == 1
    with pytest.raises(ConfigError, match=r"\(11\)=1\.1"):
        decay(11)


def test_a_config_alone_does_not_make_one() -> None:
    with pytest.raises(ConfigError, match="'Custom'"):
        Decay.from_config({"kind": "Custom", "name": "f"})
