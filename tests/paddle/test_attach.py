"""Following Paddle's optimizers: those that step together, and those whose steps are not seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import paddle
import pytest
from paddle import nn

from polyak import ConfigError, PlanError
from polyak.paddle import EMA

X = paddle.linspace(-1, 1, 6).reshape([2, 3])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))


def sgd(layer: nn.Layer) -> paddle.optimizer.SGD:
    return paddle.optimizer.SGD(0.1, parameters=layer.parameters())


def backward(layer: nn.Layer) -> None:
    layer(X).square().mean().backward()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_two_optimizers_are_one_training_step(k: int) -> None:
    layer = network()
    adamw = paddle.optimizer.AdamW(0.1, parameters=[{"params": layer[1].parameters()}])
    optimizers = [sgd(layer[0]), adamw]
    attached, by_hand = EMA(layer, 0.9), EMA(layer, 0.9)
    attached.attach(optimizers)
    for step in range(2 * k + 1):
        backward(layer)
        for optimizer in optimizers[: 2 if step % k == 0 else 1]:
            optimizer.step()
            optimizer.clear_grad()
        by_hand.update()
    assert attached.step == by_hand.step == 2 * k + 1
    for name, average in by_hand.tracks["average"].tensors.items():
        assert paddle.equal_all(average, attached.tracks["average"].tensors[name])


def test_steps_are_counted_once() -> None:
    layer = network()
    optimizer, ema = sgd(layer), EMA(layer, 0.9)
    handle = ema.attach(optimizer)
    with pytest.raises(ConfigError, match="attached to SGD already"):
        ema.attach(optimizer)
    backward(layer)
    optimizer.step()
    with pytest.raises(ConfigError, match="attached to SGD and updates itself"):
        ema.update()
    assert ema.step == 1
    handle.remove()
    ema.update()
    ema.attach([optimizer])
    optimizer.step()
    assert ema.step == 3


class Outer(paddle.optimizer.SGD):
    """Its minimize calls its step."""

    def minimize(self, loss: Any, *args: Any, **kwargs: Any) -> Any:
        loss.backward()
        self.step()


def test_a_step_inside_a_step_is_no_second_one() -> None:
    layer = network()
    optimizer, ema = Outer(0.1, parameters=layer.parameters()), EMA(layer, 0.9)
    ema.attach(optimizer)
    for _ in range(2):
        optimizer.minimize(layer(X).square().mean())
    assert ema.step == 2


def test_the_optimizer_of_another_layer_is_refused() -> None:
    layer = network()
    ema = EMA(layer, 0.9, exclude="1.*")
    for stranger in (sgd(network()), sgd(layer[1])):
        with pytest.raises(PlanError, match="attach: SGD holds none of the averaged parameters"):
            ema.attach([sgd(layer), stranger])
    ema.update()


LOOKS: dict[str, Callable[[EMA], Any]] = {
    "metrics": lambda ema: ema.metrics(),
    "state_dict": lambda ema: ema.state_dict(),
    "average_parameters": lambda ema: ema.average_parameters().__enter__(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_training_whose_steps_are_not_seen_is_noticed(look: str) -> None:
    layer = network()
    ema, trains = EMA(layer, 0.9), sgd(layer)
    ema.attach(sgd(layer))
    for _ in range(3):
        backward(layer)
        trains.step()
        trains.clear_grad()
    with pytest.warns(UserWarning, match=r"attach saw no step of .*step 0\."):
        LOOKS[look](ema)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema.metrics()


def test_what_is_no_training_is_not_taken_for_it() -> None:
    layer = network()
    optimizer, ema = sgd(layer), EMA(layer, 0.9)
    ema.attach(optimizer)
    for _ in range(3):
        layer.set_state_dict({name: t + 1 for name, t in layer.state_dict().items()})
        ema.metrics()
        with ema.average_parameters():
            layer(X)
    for _ in range(3):
        backward(layer)
        ema.metrics()
    optimizer.step()
    optimizer.clear_grad()
    ema.metrics()
    assert ema.step == 1
