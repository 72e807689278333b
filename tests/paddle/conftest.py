"""What the tests of polyak.paddle share: layers to average, and an EMA driven beside the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn
from paddle.base import core

from polyak import reference
from polyak.paddle import EMA


@pytest.fixture(autouse=True)
def _seeded() -> None:
    paddle.seed(0)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1D(3), nn.Linear(3, 2))


def array(tensor: Tensor) -> np.ndarray:
    """The values in float64, or as they are."""
    return (tensor.astype("float64") if tensor.is_floating_point() else tensor).numpy().copy()


def fill(tensor: Tensor, value: Any) -> None:
    """Write into a tensor as an optimizer does: in place."""
    with paddle.no_grad():
        tensor.set_value(paddle.full(tensor.shape, value, "float32").astype(tensor.dtype))


def averages(ema: EMA, track: str | None = None) -> dict[str, Tensor]:
    return ema.tracks[track or next(iter(ema.tracks))].tensors


def snapshot(layer: nn.Layer) -> dict[str, tuple[int, np.ndarray]]:
    """Where each tensor of the layer lies, and its values."""
    return {name: (t.data_ptr(), array(t)) for name, t in layer.state_dict().items()}


def assert_restored(layer: nn.Layer, before: dict[str, tuple[int, np.ndarray]]) -> None:
    after = snapshot(layer)
    assert after.keys() == before.keys()
    for name, (address, values) in before.items():
        assert after[name][0] == address, name
        np.testing.assert_array_equal(after[name][1], values, err_msg=name)


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """States of an EMA: the same values and tensors, bit by bit."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        np.testing.assert_array_equal(array(one), array(other), err_msg=where)
    else:
        assert one == other, where


class Beside:
    """An ``EMA`` and the reference, over the same layer and driven together.

    The reference looks values up in ``state_dict()``, so it shares nothing with the plan.
    """

    def __init__(self, layer: nn.Layer, decay: Any = 0.9, **settings: Any) -> None:
        self.layer, self.ema = layer, EMA(layer, decay, **settings)
        self.random = np.random.default_rng(7)
        self.state = reference.init(self.live(), decay)

    def live(self) -> dict[str, np.ndarray]:
        return {name: array(t) for name, t in self.layer.state_dict().items() if name in averages(self.ema)}

    def train(self) -> None:
        """Move every floating tensor in place, BatchNorm's statistics included."""
        with paddle.no_grad():
            for tensor in {id(t): t for t in self.layer.state_dict().values()}.values():
                if tensor.is_floating_point():
                    noise = paddle.to_tensor(self.random.random(tuple(tensor.shape)))
                    tensor.set_value((tensor.astype("float64") * 0.7 + noise).astype(tensor.dtype))

    def update(self) -> None:
        self.ema.update()
        self.state = reference.update(self.state, self.live())

    def run(self, updates: int = 4) -> Beside:
        for _ in range(updates):
            self.train()
            self.update()
        return self

    def check(self) -> None:
        held = averages(self.ema)
        assert set(held) == set(self.state.average)
        for name, average in held.items():
            expected = self.state.average[name]
            np.testing.assert_allclose(array(average), expected, rtol=3e-6, atol=3e-6, err_msg=name)


def trained(layer: nn.Layer, decay: Any = 0.9, **settings: Any) -> EMA:
    return Beside(layer, decay, **settings).run().ema


def peak_bytes(function: Callable[[], object]) -> int:
    """The most host memory of tensors above the start while a function ran; what it returns is dropped."""
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    function()
    return core.host_memory_stat_peak_value("Allocated", 0) - before
