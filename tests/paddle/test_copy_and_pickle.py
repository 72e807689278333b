"""A deep copy or a pickle of an EMA is another EMA, over another layer, that goes on by itself."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from polyak import Power
from polyak.errors import SwapError
from polyak.paddle import EMA
from tests.states import opened

from .conftest import array

Copying = Callable[[Any], Any]


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIES = pytest.mark.parametrize("how", [copy.deepcopy, _pickled])


class Net(nn.Layer):
    """Tied weights, a frozen layer and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight
        self.frozen, self.norm = nn.Linear(4, 4), nn.BatchNorm1D(4)
        self.frozen.weight.stop_gradient = True

    def forward(self, x: Any) -> Any:
        return self.norm(self.last(self.frozen(self.first(x))))


def _step(ema: EMA, seed: int) -> None:
    generator = np.random.default_rng(seed)
    with paddle.no_grad():
        for parameter in ema.model.parameters():
            if not parameter.stop_gradient:
                noise = generator.normal(size=parameter.shape)
                parameter.set_value((array(parameter) + noise).astype("f4"))
        ema.model(paddle.to_tensor(generator.normal(size=(5, 4)).astype("f4")))
    ema.update()


def _arrays(ema: EMA) -> dict[str, Any]:
    state = opened(ema.state_dict())
    found = {f"copy/{name}": array(tensor).copy() for name, tensor in state["copies"].items()}
    for track, held in state["tracks"].items():
        found |= {f"{track}/{name}": array(tensor).copy() for name, tensor in held["tensors"].items()}
        found |= {f"{track}/{name}/low": array(tensor).copy() for name, tensor in held["lows"].items()}
    return found


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@COPIES
@pytest.mark.parametrize(
    "kept", [{}, {"dtype": "bfloat16", "seed": 7}, {"dtype": "split"}, {"compensated": True}], ids=str
)
def test_a_copy_goes_on_as_the_original_would(how: Copying, kept: dict[str, Any]) -> None:
    paddle.seed(0)
    ema = EMA(Net(), {"short": 0.5, "long": Power(gamma=3)}, **kept)
    for seed in range(3):
        _step(ema, seed)
    twin, before = how(ema), _arrays(ema)
    assert twin.step == 3
    assert _equal(_arrays(twin), before)
    for seed in range(3, 6):
        _step(twin, seed)
    assert ema.step == 3
    assert _equal(_arrays(ema), before)
    for seed in range(3, 6):
        _step(ema, seed)
    assert twin.step == ema.step == 6
    assert _equal(_arrays(twin), _arrays(ema))
    assert twin.metrics() == ema.metrics()
    for name, track in ema.tracks.items():
        assert twin.tracks[name].profile.to_json() == track.profile.to_json()
    mine, theirs = twin.module.state_dict(), ema.module.state_dict()
    assert all((array(mine[name]) == array(theirs[name])).all() for name in theirs)


@COPIES
def test_a_copy_follows_the_recursion(how: Copying) -> None:
    ema = EMA(nn.Linear(3, 2), 0.75)
    expected = array(ema.model.weight).astype("f8")
    for step in range(5):
        ema = how(ema)
        with paddle.no_grad():
            ema.model.weight.set_value(ema.model.weight * -1.25)
        ema.update()
        expected = 0.75 * expected + 0.25 * array(ema.model.weight).astype("f8")
        assert ema.step == step + 1
    np.testing.assert_allclose(array(ema.module.weight), expected, rtol=1e-6, atol=1e-6)


@COPIES
def test_a_copy_counts_on_what_was_not_finite(how: Copying) -> None:
    ema = EMA(nn.Linear(2, 1), 0.5)
    ema.model.bias.set_value(paddle.full([1], float("nan")))
    ema.update()
    twin = how(ema)
    assert twin.metrics()["skipped"] == 1
    twin.update()
    assert twin.metrics()["skipped_tensors"] == {"bias": 2}
    assert ema.metrics()["skipped_tensors"] == {"bias": 1}


@COPIES
def test_in_one_structure_the_copy_is_of_the_same_layer(how: Copying) -> None:
    layer = nn.Linear(2, 2)
    for twin in (how({"ema": EMA(layer), "layer": layer}), how({"layer": layer, "ema": EMA(layer)})):
        assert twin["ema"].model is twin["layer"]
        assert twin["layer"] is not layer


@COPIES
def test_a_copy_follows_no_optimizer(how: Copying) -> None:
    layer = nn.Linear(2, 2)
    ema = EMA(layer, 0.5)
    optimizer = paddle.optimizer.SGD(0.1, parameters=layer.parameters())
    ema.attach(optimizer)
    twin = how(ema)
    layer(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    assert (ema.step, twin.step) == (1, 0)
    twin.update()
    assert (ema.step, twin.step) == (1, 1)


@COPIES
def test_no_copy_while_an_average_is_live(how: Copying) -> None:
    ema = EMA(nn.Linear(2, 2), 0.5)
    with ema.average_parameters(), pytest.raises(SwapError, match="copy: the model holds"):
        how(ema)
    assert how(ema).step == 0


def _updated(ema: EMA, results: Any) -> None:
    net = ema.model
    for kept in (net.frozen.weight, net.norm._mean, net.norm._variance):
        kept.stop_gradient = True  # Paddle does not send it
    _step(ema, 1)
    results.put((ema.step, _arrays(ema)))


def test_a_spawned_process_goes_on() -> None:
    ema = EMA(Net(), 0.5)
    _step(ema, 0)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    before, alone = _arrays(ema), copy.deepcopy(ema)
    process = context.Process(target=_updated, args=(ema, results))
    process.start()
    step, found = results.get(timeout=120)
    process.join(60)
    assert (step, ema.step) == (2, 1)
    assert _equal(_arrays(ema), before)
    _step(alone, 1)
    want = _arrays(alone)
    assert not [name for name in want if not (found[name] == want[name]).all()]
