"""Ctrl-C at any line: no mixture stays in the layer, and what an average says of itself stays true."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from polyak import PlanError, SwapError
from polyak.paddle import EMA, ExponentialMovingAverage
from tests.interrupts import STRIDE, every_line, torn_at_random_moments
from tests.states import opened

from .conftest import assert_equal, assert_restored, network, snapshot

Ran = tuple[Callable[[], object], EMA]
SWAPS = ("with", "apply_to", "apply")


@pytest.fixture(autouse=True)
def _grad_mode() -> Iterator[None]:
    """An interrupt between the end of a ``with paddle.no_grad()`` and what it calls leaves Paddle without."""
    yield
    paddle.set_grad_enabled(True)


def moved(layer: nn.Layer) -> None:
    with paddle.no_grad():
        for tensor in layer.state_dict().values():
            tensor.set_value((tensor.astype("float32") + 1.0).astype(tensor.dtype))


def averaging(dtype: str = "float32", decay: Any = 0.5, **options: Any) -> EMA:
    paddle.seed(0)
    layer = network().to(dtype=dtype)
    ema = EMA(layer, decay, **options)
    moved(layer)
    ema.update()
    moved(layer)
    return ema


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", SWAPS)
def test_around_a_swap_the_raw_weights_come_back(dtype: str, way: str) -> None:
    def make() -> Ran:
        ema = averaging(dtype)
        average = ExponentialMovingAverage(ema.model)
        average.ema = ema
        raws.append(snapshot(ema.model)), averages.append(average)

        def block() -> None:
            with ema.average_parameters() if way == "with" else getattr(average, way)():
                pass

        return block, ema

    raws: list[Any] = []
    averages: list[ExponentialMovingAverage] = []
    for line, ema in every_line(make):
        if way != "with" and ema.live != "raw":  # as if applied without a block, until restore()
            with pytest.raises(SwapError):
                averages[-1].update()
            averages[-1].restore()
        assert_restored(ema.model, raws[-1])
        assert ema.live == "raw", line
        ema.update()


def says(ema: EMA) -> Any:
    state = {**opened(ema.state_dict()), "run": None}
    tracks = {name: {**t, "tensors": _clones(t["tensors"])} for name, t in state["tracks"].items()}
    return {**state, "tracks": tracks, "copies": _clones(state["copies"])}


def _clones(tensors: dict[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(one: Any, other: Any) -> bool:
    try:
        assert_equal(one, other)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("verb", ["update", "reset"])
@pytest.mark.parametrize("engine", ["native", "ops"])
def test_averages_counters_and_histories_change_together_or_not_at_all(verb: str, engine: Any) -> None:
    decay = {"short": 0.5, "long": 0.9}
    before, done = says(averaging(decay=decay, engine=engine)), averaging(decay=decay, engine=engine)
    getattr(done, verb)()
    after, seen = says(done), {"before": 0, "after": 0, "torn": 0}

    def make() -> Ran:
        ema = averaging(decay=decay, engine=engine)
        return getattr(ema, verb), ema

    for line, ema in every_line(make, STRIDE if verb == "update" else 6 * STRIDE - 5):
        try:
            now = says(ema)
        except PlanError:  # several operations, and the interrupt came between them
            seen["torn"] += 1
            with pytest.raises(PlanError, match="interrupted after some averages were updated"):
                ema.update()
            ema.reset()
        else:
            assert equal(now, before) or equal(now, after), line
            seen["after" if equal(now, after) else "before"] += 1
        ema.update()
    assert (seen["torn"] > 0) == (engine == "ops" and verb == "update"), seen
    assert seen["before"] > 0, seen


def filled(layer: nn.Layer, value: float) -> None:
    for parameter in layer.parameters():
        parameter.set_value(paddle.full(parameter.shape, value).astype(parameter.dtype))


def elements(tensor: paddle.Tensor) -> np.ndarray:
    return tensor.detach().astype("float32").numpy()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a timer that sends signals")
@pytest.mark.parametrize("engine", ["native", "ops"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_random_moments_nothing_is_mixed_or_stuck_or_unnoticed(dtype: str, engine: Any) -> None:
    layer = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]).to(dtype=dtype)
    filled(layer, 0)
    ema = EMA(layer, {"short": 0.5, "long": 0.9}, engine=engine)
    torn = torn_at_random_moments(
        ema,
        lambda: map(elements, layer.parameters()),
        partial(filled, layer),
        elements,
        paddle.set_grad_enabled,
    )
    assert (torn > 0) == (engine == "ops")
