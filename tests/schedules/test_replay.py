"""A replayed history is the one that another decay would have had in the same place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from polyak import Anneal, ConfigError, Decay, HalfLife, Profile, Uniform
from polyak.schedules import COPY, History, replay

from .strategies import decays

paces = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 7)), min_size=1, max_size=5)


def tracked(decay: Decay, updates: list[tuple[int, int]], start: int = 0) -> Profile:
    """What an average with this decay records: so many updates of so many steps each."""
    history, clock = History(), 0
    if start:
        history.restart(start)
    for count, steps in updates:
        for _ in range(count):
            history.record(decay, clock, steps, steps)
            clock += steps
    return history.profile()


@given(decays, decays, paces, st.integers(0, 20))
def test_it_is_the_track_beside(one: Decay, other: Decay, updates: list[tuple[int, int]], start: int) -> None:
    assume(one != COPY)
    kept, beside = tracked(one, updates, start), tracked(other, updates, start)
    if other.unit == "steps":
        np.testing.assert_array_equal(replay(kept, other, kept.steps).weights(), beside.weights())


@given(decays, st.integers(0, 100), st.integers(1, 9))
def test_it_stands_at_an_earlier_step(decay: Decay, at: int, every: int) -> None:
    if decay.unit == "steps":
        kept = Profile.from_decay(0.9, 100, every=every)
        expected = Profile.from_decay(decay, at, every=every)
        np.testing.assert_array_equal(replay(kept, decay, at).weights(), expected.weights())


@given(st.integers(1, 50), st.sampled_from(["linear", "cosine"]))
def test_an_anneal_is_what_scaled_updates_lead_to(k: int, shape: str) -> None:
    """``θ + Σ gₜ·(θₜ - θₜ₋₁)`` over the last k steps, for any trajectory."""
    theta = np.random.default_rng(k).normal(size=61)
    x = np.arange(k) / k
    g = 1 - x if shape == "linear" else (1 + np.cos(np.pi * x)) / 2
    annealed = theta[60 - k] + g @ np.diff(theta[60 - k :])
    made = replay(Profile.from_decay(0.9, 60), Anneal(k, shape), 60, last=k)
    assert made.weights() @ theta == pytest.approx(annealed, abs=1e-12)


def test_the_last_k_are_their_mean() -> None:
    weights = replay(Profile.from_decay(0.9, 60), Uniform(), 60, last=7).weights()
    np.testing.assert_allclose(weights, np.repeat([0, 1 / 7], [54, 7]), atol=1e-15)
    same = replay(Profile.from_decay(0.9, 60), Anneal(7, "linear"), 60, last=7)
    np.testing.assert_allclose(same.weights(), weights, atol=1e-15)


def test_a_track_of_copies_stays_one() -> None:
    kept = Profile.from_decay(0.0, 60)
    np.testing.assert_array_equal(replay(kept, 0.5, 30).weights(), Profile.raw(30).weights())


def test_before_the_start_it_is_the_model() -> None:
    kept = Profile.from_decay(0.9, 60, start=40)
    np.testing.assert_array_equal(replay(kept, 0.5, 30).weights(), Profile.raw(30).weights())


def test_tokens_are_counted_as_they_came() -> None:
    history = History()
    history.record(HalfLife(tokens=1000), 0, 1, 300)
    history.record(HalfLife(tokens=1000), 300, 1, 700)
    kept = history.profile()
    weights = replay(kept, HalfLife(tokens=500), 2).weights()
    np.testing.assert_allclose(weights, [0.25, 0.5**1.4 * (1 - 0.5**0.6), 1 - 0.5**1.4])
    np.testing.assert_allclose(replay(kept, 0.5, 2).weights(), [0.25, 0.25, 0.5])
    with pytest.raises(ConfigError, match="counts samples, the averages kept count tokens"):
        replay(kept, HalfLife(samples=5), 2)


@pytest.mark.parametrize("last", [0, -1, 61])
def test_a_window_lies_within_the_run(last: int) -> None:
    with pytest.raises(ConfigError, match=f"last={last}: must be a whole number of steps from 1 to 60"):
        replay(Profile.from_decay(0.9, 60), 0.5, 60, last=last)


def test_a_mixture_has_no_history() -> None:
    with pytest.raises(ConfigError, match="mixture"):
        replay(Profile.raw(3) + Profile.raw(4), 0.5, 3)
