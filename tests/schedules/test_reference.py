"""The reference is short enough to check by hand; here it is."""

from __future__ import annotations

import math

import numpy as np

from polyak import HalfLife, Uniform
from polyak.reference import init, update


def test_three_steps_by_hand() -> None:
    state = init({"w": np.array([1.0])}, 0.5)
    for value, expected in ((2.0, 1.5), (4.0, 2.75), (0.0, 1.375)):
        state = update(state, {"w": np.array([value])})
        assert state.average["w"] == [expected]


def test_every_acts_on_each_kth_step_with_the_composed_decay() -> None:
    state = init({"w": np.array([1.0])}, 0.5, every=2)
    state = update(state, {"w": np.array([9.0])})
    assert state.average["w"] == [1.0]
    state = update(state, {"w": np.array([5.0])})
    assert state.average["w"] == [0.25 * 1 + 0.75 * 5]


def test_start_copies_and_the_schedule_begins_after_it() -> None:
    state = init({"w": np.array([1.0])}, Uniform(), start=2)
    values = [7.0, 3.0, 4.0, 6.0]
    seen = []
    for value in values:
        state = update(state, {"w": np.array([value])})
        seen.append(float(state.average["w"][0]))
    assert seen == [7.0, 3.0, 4.0, 5.0]


def test_elements_that_are_not_finite_keep_their_average() -> None:
    state = init({"w": np.array([1.0, 1.0, 1.0])}, 0.5)
    state = update(state, {"w": np.array([math.nan, 3.0, -math.inf])})
    assert state.average["w"].tolist() == [1.0, 2.0, 1.0]


def test_integers_are_copied_and_narrow_floats_widened() -> None:
    state = init({"n": np.array([2**53 + 1]), "h": np.array([1.0], np.float16)}, 0.5)
    state = update(state, {"n": np.array([2**53 + 3]), "h": np.array([2.0], np.float16)})
    assert state.average["n"].tolist() == [2**53 + 3]
    assert state.average["h"].dtype == np.float64


def test_samples_are_the_clock_of_a_decay_that_counts_them() -> None:
    state = init({"w": np.array([0.0])}, HalfLife(samples=64))
    state = update(state, {"w": np.array([1.0])}, steps=1, units=64)
    assert state.average["w"] == [0.5]
    assert (state.step, state.clock) == (1, 64)
