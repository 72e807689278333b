"""What an update does besides averaging, counted: decays computed, blocks of memory allocated, looks."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import polyak
from polyak.schedules.decay import Array, Custom, Decay, compose

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
