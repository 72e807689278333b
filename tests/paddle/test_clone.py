"""``ema.module`` is nobody's way to the live layer: own memory, own functions, or refused by name."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import paddle
import pytest
from paddle import Tensor, nn

from polyak import PlanError
from polyak.paddle import EMA

X = paddle.ones([1, 2])


class Everything(nn.Layer):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2)
        for parameter in self.frozen.parameters():
            parameter.stop_gradient = True
        self.norm = nn.BatchNorm1D(2)
        self.register_buffer("table", paddle.full([2], value))
        self.register_buffer("cache", paddle.full([2], value), persistable=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.frozen(self.trained(x))) + self.table + self.cache


def tensors(layer: nn.Layer) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def shift(layer: nn.Layer) -> None:
    with paddle.no_grad():
        for tensor in tensors(layer):
            tensor.set_value(tensor + 1)


SELECTIONS: list[dict[str, Any]] = [
    {},
    {"buffers": "ignore"},
    {"exclude": "frozen.*"},
    {"include": "trained.*"},
]


@pytest.mark.parametrize("options", SELECTIONS)
def test_writes_stay_on_their_side_and_the_module_follows(options: dict[str, Any]) -> None:
    layer = Everything()
    layer.eval()
    ema = EMA(layer, 0.5, **options)
    before = [tensor.numpy() for tensor in tensors(layer)]
    shift(ema.module)
    assert all((tensor.numpy() == then).all() for tensor, then in zip(tensors(layer), before, strict=True))
    ema.reset()
    shift(layer)
    ema.update()
    with ema.average_parameters():
        assert paddle.allclose(ema(X), layer(X))


def test_a_module_that_was_taken_off_the_average_is_made_again() -> None:
    ema = EMA(Everything(), 0.5)
    given = ema.module
    given.to(dtype="float64")
    assert ema.module is not given
    assert ema.module.trained.weight.data_ptr() == ema.tracks["average"].tensors["trained.weight"].data_ptr()


@pytest.mark.parametrize("buffers", ["auto", "ignore"])
def test_another_layer_gets_all_that_the_module_computes_with(buffers: Any) -> None:
    other, ema = Everything(3.0), EMA(Everything(), 0.5, buffers=buffers)
    ema.copy_to(other)
    want, found = ema.module.state_dict(), other.state_dict()
    assert all((found[name].numpy() == want[name].numpy()).all() for name in want)


class Leading(nn.Layer):
    def __init__(self, lead: Callable[[nn.Layer], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        object.__setattr__(self, "lead", lead(self))

    def forward(self, x: Tensor) -> Tensor:
        return self.lead(x)


class Locked:
    def __init__(self, net: nn.Layer) -> None:
        self.net, self.lock = net, threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        return self.net.layer(x)


def by_reference(net: nn.Layer) -> Any:
    layer = weakref.ref(net.layer)
    return lambda x: layer()(x)


@pytest.mark.parametrize(
    "lead", [lambda net: lambda x: net.layer(x), by_reference, lambda net: net.layer.forward]
)
def test_what_leads_to_the_layer_leads_to_the_average_in_the_module(lead: Callable[[nn.Layer], Any]) -> None:
    layer = Leading(lead)
    ema = EMA(layer, 0.5)
    shift(layer)
    ema.update()
    with ema.average_parameters():
        assert paddle.allclose(ema(X), layer(X))


def test_what_leads_to_the_layer_whatever_is_done_is_refused_by_name() -> None:
    ema = EMA(Leading(Locked), 0.5)
    with pytest.raises(PlanError, match=r"Leading\.lead \(Locked\) leads to the live weights"):
        _ = ema.module


def test_slots_come_along() -> None:
    class Slotted(nn.Linear):
        __slots__ = ("scale",)

    layer = Slotted(2, 2)
    layer.scale = 2.0
    assert EMA(layer, 0.5).module.scale == 2.0
