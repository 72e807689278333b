"""BatchNorm statistics of a Paddle layer measured anew."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from polyak import ConfigError
from polyak.paddle import EMA, update_batchnorm

from .conftest import array, fill

BATCHES = [np.random.default_rng(i).normal(size=(6, 3)).astype("float32") for i in range(4)]
LOADER = [paddle.to_tensor(batch) for batch in BATCHES]


def network(norm: Callable[..., nn.Layer] = nn.BatchNorm1D) -> nn.Sequential:
    paddle.seed(0)
    return nn.Sequential(
        nn.Linear(3, 4), norm(4, momentum=0.7), nn.Dropout(0.5), nn.Linear(4, 2), norm(2, momentum=0.9)
    )


def statistics(layer: nn.Layer) -> dict[str, np.ndarray]:
    return {k: array(t) for k, t in layer.state_dict().items() if k.endswith(("_mean", "_variance"))}


@pytest.mark.parametrize("norm", [nn.BatchNorm1D, nn.BatchNorm], ids=["BatchNorm1D", "BatchNorm"])
@pytest.mark.parametrize("before", [5.0, float("nan")])
def test_it_measures_what_numpy_does_whatever_was_there(norm: Any, before: float) -> None:
    layer = network(norm)
    for tensor in (layer[1]._mean, layer[1]._variance):
        fill(tensor, before)
    update_batchnorm(layer, LOADER)
    weight, bias = array(layer[0].weight), array(layer[0].bias)
    hidden = [batch @ weight + bias for batch in BATCHES]
    mean, variance = (np.mean([f(h, 0) for h in hidden], 0) for f in (np.mean, np.var))
    np.testing.assert_allclose(array(layer[1]._mean), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(array(layer[1]._variance), variance, rtol=1e-5)


def test_each_norm_counts_its_own_calls() -> None:
    """One is called twice for each batch, one only from the second batch on, one never."""
    layer = nn.LayerList([nn.BatchNorm1D(3), nn.BatchNorm1D(3), nn.BatchNorm1D(3)])
    fill(layer[2]._mean, 4)

    def forward(_: nn.Layer, batch: tuple[int, Tensor]) -> None:
        i, x = batch
        layer[0](x)
        layer[0](x + 1)
        if i:
            layer[1](x)

    update_batchnorm(layer, enumerate(LOADER), forward)
    means = np.array([batch.mean(0) for batch in BATCHES])
    np.testing.assert_allclose(array(layer[0]._mean), means.mean(0) + 0.5, rtol=1e-5)
    np.testing.assert_allclose(array(layer[1]._mean), means[1:].mean(0), rtol=1e-5, atol=1e-6)
    assert layer[2]._mean.tolist() == [4, 4, 4]
    assert not any(norm._forward_pre_hooks for norm in layer)


def test_dropout_is_off_while_measuring() -> None:
    a, b = network(), network()
    b[2] = nn.Identity()
    for layer in (a, b):
        update_batchnorm(layer, LOADER)
    np.testing.assert_array_equal(statistics(a)["4._mean"], statistics(b)["4._mean"])


class Keyword(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, pixels: Tensor, label: int = 0) -> Tensor:
        return self.inner(pixels)


@pytest.mark.parametrize(
    ("wrap", "forward"),
    [
        (lambda x: x, None),
        (lambda x: (x, paddle.zeros([6])), None),
        (lambda x: [x, "label"], None),
        (lambda x: SimpleNamespace(x=x), lambda layer, batch: layer(batch.x)),
    ],
    ids=["tensor", "tuple", "list", "forward="],
)
def test_any_batch(wrap: Any, forward: Any) -> None:
    plain, wrapped = network(), network()
    update_batchnorm(plain, LOADER)
    update_batchnorm(wrapped, (wrap(x) for x in LOADER), forward)
    assert not [k for k, v in statistics(wrapped).items() if not np.array_equal(v, statistics(plain)[k])]


def test_a_mapping_is_passed_by_name() -> None:
    plain, layer = network(), Keyword()
    update_batchnorm(plain, LOADER)
    update_batchnorm(layer, [{"pixels": x, "label": 1} for x in LOADER])
    for key, value in statistics(plain).items():
        np.testing.assert_array_equal(statistics(layer)[f"inner.{key}"], value)


def broken() -> list[Tensor]:
    return [LOADER[0], paddle.ones([2, 99])]


@pytest.mark.parametrize("loader", [lambda: LOADER, broken], ids=["measured", "failed"])
def test_mode_and_momentum_are_as_before(loader: Callable[[], list[Tensor]]) -> None:
    layer = network()
    layer.train()
    layer[0].eval()
    modes = [one.training for one in layer.sublayers(include_self=True)]
    before = statistics(layer)
    if loader is broken:
        with pytest.raises(ValueError):
            update_batchnorm(layer, loader())
        for key, value in statistics(layer).items():
            np.testing.assert_array_equal(value, before[key])
    else:
        update_batchnorm(layer, loader())
    assert [one.training for one in layer.sublayers(include_self=True)] == modes
    assert (layer[1]._momentum, layer[4]._momentum) == (0.7, 0.9)
    assert paddle.is_grad_enabled()


def test_an_empty_loader_is_refused_and_the_statistics_stay() -> None:
    layer, used_up = network(), iter(LOADER)
    update_batchnorm(layer, used_up)
    before = statistics(layer)
    with pytest.raises(ConfigError, match=r"gave no batch.*unchanged"):
        update_batchnorm(layer, used_up)
    for key, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[key])


def test_a_layer_without_batch_norm_does_not_read_the_loader() -> None:
    update_batchnorm(nn.Linear(2, 2), (pytest.fail("read") for _ in range(1)))


def test_the_average_can_be_measured_without_touching_the_layer() -> None:
    layer = network()
    ema = EMA(layer, 0.9)
    fill(layer[0].weight, 3)
    ema.update()
    before = statistics(layer)
    update_batchnorm(ema.module, LOADER)
    for key, value in statistics(layer).items():
        np.testing.assert_array_equal(value, before[key])
    expected = np.mean([array(ema.module[0](x)).mean(0) for x in LOADER], 0)
    np.testing.assert_allclose(array(ema.tracks["average"].tensors["1._mean"]), expected, rtol=1e-5)
