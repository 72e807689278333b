"""What an update does besides averaging, counted: decays computed, blocks of memory allocated, looks."""

from __future__ import annotations

import copy
import gc
import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import polyak
from polyak.schedules.decay import Array, Custom, Decay, compose
from tests.states import opened
from tests.work import lines_run

CHANGING: list[Decay] = [
    polyak.Warmup(0.9999),
    polyak.Power(sigma_rel=0.1),
    polyak.Debiased(0.999),
    polyak.Cosine(0.9, 1.0, total=50),
    polyak.Piecewise([(40, 0.9), (None, polyak.Capped(0.99))]),
]


@dataclass(frozen=True)
class Counted(Decay):
    """A decay that changes, and counts how often it was evaluated."""

    calls: list[int]

    def betas(self, t: Array) -> Array:
        self.calls.append(len(t))
        return 1 - 1 / (t + 1)


def small(decay: Any, **options: Any) -> polyak.EMA[nn.Linear]:
    return polyak.EMA(nn.Linear(2, 2), decay, **options)


def test_a_thousand_steps_evaluate_a_schedule_a_few_times() -> None:
    counted = Counted([])
    ema = small(counted)
    for _ in range(1000):
        ema.update()
    assert len(counted.calls) <= 6


def test_steps_of_other_sizes_are_evaluated_one_by_one() -> None:
    """A block for each would be work thrown away."""
    counted = Counted([])
    ema = small(counted)
    for i in range(100):
        ema.update(steps=1 + i % 2)
    assert sum(counted.calls) <= 2 * 100


def test_a_function_is_never_asked_about_steps_that_may_not_come() -> None:
    asked: list[int] = []

    def function(t: int) -> float:
        asked.append(t)
        return 0.9

    ema = small({"function": Custom(function), "pieces": polyak.Piecewise([(2, 0.5), (None, function)])})
    for _ in range(10):
        ema.update()
    assert max(asked) == 10


@settings(max_examples=60, deadline=None)
@given(
    decay=st.sampled_from([*CHANGING, polyak.Constant(0.9), polyak.HalfLife(samples=7)]),
    every=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 3) | st.just(1), min_size=1, max_size=60),
    resumed=st.integers(0, 60),
)
def test_each_update_applies_what_a_single_call_gives(
    decay: Decay, every: int, sizes: list[int], resumed: int
) -> None:
    """To the last bit, at any pace, and also from a resumed state on."""
    ema, clock, waiting = small(decay, every=every), 0, 0
    for i, size in enumerate(sizes):
        if i == resumed:
            state = ema.state_dict()
            ema = small(decay, every=every)
            ema.load_state_dict(state)
        ema.update(steps=size, samples=5 * size)
        waiting += size
        track = ema.tracks["average"]
        if waiting >= every:
            advance = waiting if decay.unit == "steps" else 5 * waiting
            assert track.beta == compose(decay, clock, advance)
            clock, waiting = clock + advance, 0
        assert track.clock == clock


@pytest.mark.parametrize("decay", [0.999, polyak.Warmup(0.9999), {"a": 0.9, "b": polyak.Power(gamma=3)}])
@pytest.mark.slow
def test_counting_and_recording_keep_no_memory(decay: Any) -> None:
    ema = small(decay)
    for _ in range(300):  # past the first blocks
        ema.update()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(100):
        ema.update()
    gc.collect()
    assert sys.getallocatedblocks() - before < 20


def test_all_is_looked_at_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    native = pytest.importorskip("polyak._kernel._native")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("torch before 2.10: tensors are read in Python")
    unchanged = native.unchanged
    monkeypatch.setattr(native, "unchanged", lambda *args: calls.append(args) or unchanged(*args))
    for name in ("dicts_unchanged", "attributes_unchanged", "unmoved"):
        monkeypatch.setattr(f"polyak._core.change_detection._native.{name}", calls.append)
    ema = small({"a": 0.9, "b": 0.99})
    for _ in range(10):
        ema.update()
    assert len(calls) == 10


@pytest.mark.parametrize(
    ("decay", "options", "most"),
    [
        (polyak.Warmup(0.9999), {}, 42),
        ({"a": 0.999, "b": polyak.Power(sigma_rel=0.1)}, {}, 42),  # a second schedule costs no line
        (polyak.ByName({"weight": 0.9, "*": 0.99}), {}, 56),  # two engines
        (0.999, {"start": 1000}, 42),
        (lambda t: 0.9, {}, 89),  # computed step by step
    ],
    ids=["one", "two", "by name", "copying", "function"],
)
def test_an_update_like_the_one_before_runs_few_lines(decay: Any, options: dict[str, int], most: int) -> None:
    """It is counted by one number; clocks, decays and histories follow from that when they are read."""
    pytest.importorskip("polyak._kernel._native")
    ema = small(decay, **options)
    for _ in range(5):
        ema.update()
    assert lines_run(ema.update) <= most
    assert ema.step == 6


def test_a_track_that_is_held_says_how_far_it_is_now() -> None:
    ema = small(polyak.Warmup(0.999))
    track = ema.tracks["average"]
    history = track.history
    for step in range(1, 300):
        ema.update()
        assert (track.clock, track.profile.steps) == (step, step)
        assert track.beta == compose(track.timelines["*"].decay, step - 1, 1)
    assert history.runs == ()


def told(ema: polyak.EMA[Any]) -> str:
    """All of its state, to the last bit."""
    return json.dumps(opened(ema.state_dict()) | {"run": ""}, default=torch.Tensor.tolist)


CALLS = st.sampled_from(
    [{}, {}, {}, {"steps": 2}, {"samples": 7}, {"samples": 500}, {"samples": 500}, {"steps": 3, "samples": 7}]
)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(CALLS | st.sampled_from(["reset", "copy"]), min_size=1, max_size=40),
    every=st.integers(1, 3),
    start=st.sampled_from([0, 3, 10]),
    in_samples=st.booleans(),
)
@example(calls=[{}, {}, {"samples": 7}, {"samples": 7}], every=1, start=0, in_samples=True)
@example(calls=[{"steps": 2}, {"steps": 2}, {}, {"steps": 2}], every=2, start=0, in_samples=False)
@example(calls=[{}] * 8, every=1, start=3, in_samples=False)
def test_whatever_the_calls_an_ema_is_what_it_is_when_resumed_before_each(
    calls: list[Any], every: int, start: int, in_samples: bool
) -> None:
    """So nothing that was prepared outlives a call of another size, a reset, a copy or a loaded state."""
    second = polyak.HalfLife(samples=900) if in_samples else polyak.Custom(lambda t: 1 - 1 / (t + 1))
    decay = {"a": polyak.Warmup(0.99), "b": second}
    torch.manual_seed(0)
    straight = small(decay, every=every, start=start)
    resumed = copy.deepcopy(straight)
    for call in calls:
        state = copy.deepcopy(opened(resumed.state_dict()))
        resumed = polyak.EMA(resumed.model, decay, every=every, start=start)
        resumed.load_state_dict(state)
        for ema in (straight, resumed):
            with torch.no_grad():
                ema.model.weight += 1
            if call == "reset":
                ema.reset()
            elif call != "copy":
                ema.update(**({"samples": 1} | call))
        if call == "copy":
            straight = copy.deepcopy(straight)
        assert told(straight) == told(resumed)


def test_how_often_it_updates_is_fixed() -> None:
    ema = small(0.9, every=2, start=5)
    assert (ema.every, ema.start) == (2, 5)
    for name in ("every", "start"):
        with pytest.raises(AttributeError):
            setattr(ema, name, 1)
