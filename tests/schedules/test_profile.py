"""A profile is exactly what the recursion does: any history, any window, mixed, written and read back."""

from __future__ import annotations

import json
import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polyak import CheckpointError, ConfigError, Constant, Decay, Power, Profile, Uniform, compose, reference
from polyak.schedules import COPY, History, Run, windows

from .strategies import ONE_OF_EACH, decays, histories, mixtures, recursed, trajectory

every_decay = pytest.mark.parametrize("decay", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
seeds = st.integers(0, 2**32 - 1)
# Windows this short put several edges into a short history; the library's own holds 16,384 points.
short_windows = st.integers(1, 20)


@given(histories, seeds, short_windows)
def test_any_history_equals_the_recursion(runs: tuple[Run, ...], seed: int, window: int) -> None:
    with patch.object(windows, "WINDOW", window):
        w = Profile(((1.0, runs),)).weights()
    theta = trajectory(len(w) - 1, seed)
    assert w @ theta == pytest.approx(recursed(runs, theta), abs=1e-12)
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert (w >= 0).all()


@given(mixtures, seeds, short_windows)
def test_a_mixture_of_histories_is_the_mixture_of_their_averages(
    mixed: Profile, seed: int, window: int
) -> None:
    with patch.object(windows, "WINDOW", window):
        w = mixed.weights()
    theta = trajectory(mixed.steps, seed)
    expected = sum(coefficient * recursed(runs, theta) for coefficient, runs in mixed.terms)
    assert w @ theta == pytest.approx(expected, abs=1e-11)
    assert mixed.total == pytest.approx(sum(coefficient for coefficient, _ in mixed.terms), abs=1e-11)


@given(decays, st.integers(0, 150), st.integers(1, 7), st.integers(0, 20), seeds)
def test_from_decay_is_what_the_reference_does(
    decay: Decay, steps: int, every: int, start: int, seed: int
) -> None:
    p = Profile.from_decay(decay, steps, every=every, start=start)
    theta = trajectory(steps, seed)
    state = reference.init({"w": theta[:1]}, decay, every=every, start=start)
    for t in range(1, steps + 1):
        state = reference.update(state, {"w": theta[t : t + 1]})
    assert p.weights() @ theta[: p.steps + 1] == pytest.approx(state.average["w"][0], abs=1e-12)


@every_decay
@pytest.mark.parametrize(("every", "steps", "window"), [(1, 10_000, 1 << 12), (7, 40_000, windows.WINDOW)])
@pytest.mark.slow
def test_a_long_run_over_several_windows_equals_the_recursion(
    decay: Decay, every: int, steps: int, window: int
) -> None:
    start = 500
    p = Profile.from_decay(decay, steps, every=every, start=start)
    theta = trajectory(p.steps, seed=0)
    average = theta[start]
    for t in range(start + every, p.steps + 1, every):
        beta = compose(decay, t - start - every, every)
        average = beta * average + (1 - beta) * theta[t]
    with patch.object(windows, "WINDOW", window):
        w = p.weights()
    assert w @ theta == pytest.approx(average, abs=1e-12)
    assert p.total == pytest.approx(1, abs=1e-12)


def test_skips_keep_and_restarts_forget() -> None:
    run = Run(Constant(0.5), 0, 1, 1, 1)
    skipped = Profile(((1.0, (run, Run(Constant(1.0), 0, 2, 1, 1))),))
    assert skipped.weights().tolist() == [0.5, 0.5, 0, 0]
    restarted = Profile(((1.0, (run, Run(COPY, 0, 1, 1, 1), run)),))
    assert restarted.weights().tolist() == [0, 0, 0.5, 0.5]


@given(mixtures)
def test_a_profile_comes_back_through_json(mixed: Profile) -> None:
    assert Profile.from_json(mixed.to_json()) == mixed


@every_decay
@pytest.mark.parametrize("every", [1, 16])
def test_a_million_steps_fit_in_a_kilobyte(decay: Decay, every: int) -> None:
    history = History([Run(decay, 0, 10**6 // every - 1, every, every)])
    history.record(decay, 10**6 - every, every, every)
    text = history.profile().to_json()
    assert len(text.encode()) < 1024
    assert Profile.from_json(text).steps == 10**6


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
VALID: Any = json.loads(
    (0.5 * Profile.from_decay(Power(sigma_rel=0.1), 99, start=9) + 0.5 * Profile.raw(50)).to_json()
)
PLACES = [
    (),
    ("decays",),
    ("terms",),
    ("decays", 0),
    ("decays", 0, "kind"),
    ("decays", 1, "sigma_rel"),
    ("terms", 0),
    ("terms", 0, 0),
    ("terms", 0, 1),
    ("terms", 0, 1, 0),
    *(("terms", 0, 1, 0, i) for i in range(5)),
]


@given(st.text() | json_values.map(json.dumps))
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)profile .* cannot be read"):
        Profile.from_json(text)


@example(("decays", 1, "sigma_rel"), 2e-276)
@given(st.sampled_from(PLACES), json_values)
def test_a_damaged_profile_is_read_as_one_or_refused(place: tuple[Any, ...], garbage: Any) -> None:
    data = damaged(json.dumps(VALID), place, garbage)
    try:
        read = Profile.from_json(data)
    except CheckpointError:
        return
    assert Profile.from_json(read.to_json()) == read
    if read.known and read.steps < 10_000:
        assert np.isfinite(read.weights()).all()


def damaged(text: str, place: tuple[Any, ...], garbage: Any) -> str:
    """The JSON with another value at one place."""
    box: Any = {"top": json.loads(text)}
    target, key = box, "top"
    for step in place:
        target, key = target[key], step
    target[key] = garbage
    return json.dumps(box["top"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "cannot be read"),
        ('{"decays":[],"terms":[[1.0,[[0,0,1,1,1]]]]}', "index out of range"),
        ('{"decays":[{"kind":"Constant","beta":2}],"terms":[]}', "beta=2"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[NaN,[[0,0,1,1,1]]]]}', "not finite"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1e999,[[0,0,1,1,1]]]]}', "not finite"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1' + "0" * 400 + ",[[0,0,1,1,1]]]]}", "too large"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1.0,[[0,0,-1,1,1]]]]}', "count ≥ 1"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1.0,[[0,0,1,1,0]]]]}', "advance ≥ 1"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1.0,[[-1,0,1,1,1]]]]}', "run [-1, 0, 1, 1, 1]"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1.0,[[0,0,1.5,1,1]]]]}', "count ≥ 1"),
        ('{"decays":[{"kind":"Uniform"}],"terms":[[1.0,[[0,0,1,1]]]]}', "run [0, 0, 1, 1]"),
    ],
)
def test_the_refusal_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        Profile.from_json(text)
    assert why in str(refused.value)
    assert len(str(refused.value)) < 700


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_half_life_and_mean_age_of_a_constant(beta: float) -> None:
    p = Profile.from_decay(beta, int(40 / (1 - beta)))
    assert p.half_life == pytest.approx(math.log(0.5) / math.log(beta), rel=1e-9)
    assert p.mean_age == pytest.approx(beta / (1 - beta), rel=1e-9)
    assert p.effective_samples == pytest.approx((1 + beta) / (1 - beta), rel=1e-9)
    assert p.initial_weight == pytest.approx(beta**p.steps)


def test_a_uniform_average_has_these_numbers() -> None:
    p = Profile.from_decay(Uniform(), 1000)
    assert p.mean_age == pytest.approx(499.5)
    assert p.effective_samples == pytest.approx(1000)
    assert p.initial_weight == 0
    assert p.half_life == pytest.approx(500, abs=1)


def test_the_half_life_survives_a_cadence() -> None:
    expected = math.log(0.5) / math.log(0.999)
    for every in (1, 10, 100):
        p = Profile.from_decay(0.999, 40_000, every=every)
        assert p.half_life == pytest.approx(expected, rel=1e-9)


def test_a_multiple_of_a_profile_is_as_old_as_the_profile() -> None:
    p = Profile.from_decay(0.99, 5000)
    for factor in (2.0, 0.25, -3.0):
        assert (factor * p).half_life == pytest.approx(p.half_life, rel=1e-9)
        assert (factor * p).mean_age == pytest.approx(p.mean_age, rel=1e-9)
        assert (factor * p).effective_samples == pytest.approx(p.effective_samples, rel=1e-9)


def test_the_half_life_of_what_never_left_the_beginning_is_its_age() -> None:
    assert Profile.from_decay(0.9999, 100).half_life == 100
    assert Profile.raw(7).half_life == 0


def test_initial_weight_is_that_of_the_parameters_at_start() -> None:
    p = Profile.from_decay(0.9, 30, start=20)
    assert p.initial_weight == pytest.approx(0.9**10)
    assert p.weights()[20] == pytest.approx(p.initial_weight, rel=1e-14)
    assert p.weights()[:20].tolist() == [0.0] * 20


def test_raw_checkpoints_in_a_mixture_began_nothing() -> None:
    late = Profile.mix([Profile.raw(100), Profile.raw(200)], [0.25, 0.75])
    assert late.initial_weight == 0
    assert Profile.mix([Profile.raw(0), Profile.raw(200)], [0.25, 0.75]).initial_weight == 0.25
    ema = Profile.from_decay(0.9, 30, start=20)
    assert Profile.mix([ema, Profile.raw(30)], [0.5, 0.5]).initial_weight == pytest.approx(0.5 * 0.9**10)
    assert Profile.raw(20).initial_weight == 1  # an average that was just set to these parameters


@given(st.integers(0, 60), decays, st.integers(0, 40))
def test_raw_is_one_point(step: int, decay: Decay, steps: int) -> None:
    assert Profile.raw(step).weights().tolist() == [0.0] * step + [1.0]
    nothing = Profile.from_decay(decay, 0)
    assert nothing.weights().tolist() == [1.0]


@given(st.lists(st.tuples(decays, st.integers(1, 30), st.integers(1, 3), st.integers(1, 5)), max_size=8))
def test_recording_one_by_one_gives_the_merged_runs(plan: list[tuple[Decay, int, int, int]]) -> None:
    """Equal updates in a row are one run; a new decay, pace or clock opens another."""
    history, expected, clock = History(), [], 0
    for decay, count, stride, advance in plan:
        first = clock
        for _ in range(count):
            history.record(decay, clock, stride, advance)
            clock += advance
        last = expected[-1] if expected else None
        if last and last.decay is decay and (last.stride, last.advance) == (stride, advance):
            expected[-1] = last._replace(count=last.count + count)
        else:
            expected.append(Run(decay, first, count, stride, advance))
    assert history.runs == tuple(expected)
    assert history.profile().steps == sum(count * stride for _, count, stride, _ in plan)


def test_recording_notices_a_clock_that_does_not_go_on() -> None:
    decay, history = Constant(0.9), History()
    history.record(decay, 0, 1, 1)
    history.record(decay, 0, 1, 1)
    assert [run.count for run in history.runs] == [1, 1]


def test_a_recorded_million_steps_are_one_run() -> None:
    decay, history = Power(sigma_rel=0.1), History()
    for t in range(0, 1_000_000, 100):
        history.record(decay, t, 100, 100)
    assert history.runs == (Run(decay, 0, 10_000, 100, 100),)


def test_a_restart_drops_what_came_before() -> None:
    history = History([Run(Constant(0.9), 0, 50, 1, 1)])
    history.restart(50)
    history.record(Constant(0.9), 0, 1, 1)
    assert history.profile().weights()[:50].tolist() == [0.0] * 50
    assert history.profile().weights()[50:].tolist() == pytest.approx([0.9, 0.1])


@given(decays, st.integers(0, 40), st.integers(1, 5), st.integers(0, 45), seeds)
def test_since_is_the_average_of_a_tensor_that_joined_later(
    decay: Decay, updates: int, every: int, step: int, seed: int
) -> None:
    """Its average starts at θ(step) and then takes the same decays as everything else."""
    p = Profile.from_decay(decay, updates * every, every=every)
    theta = trajectory(max(p.steps, step), seed)
    average = theta[step]
    for t in range(every, p.steps + 1, every):
        if t > step:
            beta = compose(decay, t - every, every)
            average = beta * average + (1 - beta) * theta[t]
    joined = p.since(step).weights()
    assert joined @ theta[: len(joined)] == pytest.approx(average, abs=1e-12)
    assert joined[:step] == pytest.approx(0)


@given(mixtures, mixtures, st.floats(-3, 3))
def test_sums_and_multiples_act_on_the_weights(a: Profile, b: Profile, c: float) -> None:
    long = max(a.steps, b.steps) + 1
    wa, wb = (np.pad(p.weights(), (0, long - p.steps - 1)) for p in (a, b))
    np.testing.assert_allclose((a + b).weights(), wa + wb, atol=1e-13)
    np.testing.assert_allclose((a * c).weights(), a.weights() * c, atol=1e-13)
    assert (c * a) == (a * c)
    np.testing.assert_allclose(Profile.mix([a, b], [c, 1 - c]).weights(), c * wa + (1 - c) * wb, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Profile.from_decay(0.9, -1), ["steps=-1", "≥ 0"]),
        (lambda: Profile.from_decay(0.9, 5, every=0), ["every=0", "≥ 1"]),
        (lambda: Profile.from_decay(0.9, 5, start=-2), ["start=-2", "≥ 0"]),
        (lambda: Profile.from_decay(1.5, 5), ["beta=1.5", "[0, 1]"]),
        (lambda: Profile.raw(-1), ["steps=-1"]),
        (lambda: Profile.mix([], []), ["0 profiles", "0 weights"]),
        (lambda: Profile.mix([Profile.raw(1)], [0.5, 0.5]), ["1 profiles", "2 weights"]),
    ],
)
def test_bad_arguments_are_refused(make: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert [word for word in words if word not in str(refused.value)] == []
