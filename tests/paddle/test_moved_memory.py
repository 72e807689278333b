"""Averages of a layer that somebody moves in place: they go on where they lie, or are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import paddle
import pytest
from paddle import Tensor, nn

from polyak import PlanError
from polyak.paddle import EMA

from .conftest import Beside, averages, network

MOVES: dict[str, Callable[[Tensor], object]] = {
    "pointed elsewhere": lambda tensor: setattr(tensor, "data", tensor.clone()),
    "its holder shared": lambda tensor: tensor.get_tensor()._share_filename(False),
    "set": lambda tensor: tensor.get_tensor().set(tensor.numpy() + 0, paddle.CPUPlace()),
}


@pytest.mark.parametrize("engine", ["native", "ops"])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_averages_go_on_where_they_lie(move: Callable[[Tensor], object], engine: str) -> None:
    side = Beside(network(), engine=engine).run(2)
    for tensor in averages(side.ema).values():
        move(tensor)
    side.run(3).check()
    for name, tensor in side.ema.module.state_dict().items():
        assert tensor.data_ptr() == averages(side.ema)[name].data_ptr()


def test_a_layer_shared_while_it_holds_the_average() -> None:
    side = Beside(network()).run(2)
    with side.ema.average_parameters() as layer:
        for tensor in layer.state_dict().values():
            tensor.get_tensor()._share_filename(False)
    side.run(3).check()


def test_an_average_that_became_another_is_named_and_nothing_is_done() -> None:
    layer = nn.Linear(2, 3)
    ema = EMA(layer, 0.5)
    kept = averages(ema)["weight"]
    bias = copy.deepcopy(averages(ema)["bias"].numpy())
    kept.data = kept.astype("float64")
    with pytest.raises(PlanError, match=r"the average .average. of weight was paddle\.float32"):
        ema.update()
    assert ema.step == 0
    assert (averages(ema)["bias"].numpy() == bias).all()
    ema.reset()
    ema.update()
    assert averages(ema)["weight"].dtype == paddle.float32
