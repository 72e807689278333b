"""What docs/paddle/others.md says of the averages of PaddleSeg and PaddleScience, beside the originals."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from polyak.paddle import EMA
from tests.paddle import originals
from tests.paddle.conftest import array, network

PAGE = Path(__file__).parents[2] / "docs" / "paddle" / "others"


def train(layer: nn.Layer, after_each: Callable[[int], None]) -> None:
    optimizer = paddle.optimizer.SGD(0.05, parameters=layer.parameters())
    for t in range(1, 31):
        layer(paddle.randn([16, 2]) * 3 + 1).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        after_each(t)


def distances(theirs: dict[str, Any], ema: EMA) -> dict[str, float]:
    mine = ema.module.state_dict()
    return {name: float(np.abs(array(tensor) - array(mine[name])).max()) for name, tensor in theirs.items()}


def test_a_function_of_the_iteration_gives_the_average_of_paddle_seg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    decay = runpy.run_path(str(PAGE / "seg.py"))["paddleseg"]
    original, layer = originals.paddle_seg(), network()
    ema, model = EMA(layer, decay), copy.deepcopy(layer)
    original.init_ema_params(model, layer)

    def after_each(t: int) -> None:
        original.update_ema_model(model, layer, step=t, decay=0.999)
        ema.update()

    train(layer, after_each)
    found = distances(model.state_dict(), ema)
    assert max(found.values()) < 1e-5, found


def test_paddle_science_keeps_the_first_statistics_of_batchnorm() -> None:
    layer = network()
    ema, original = EMA(layer, 0.9), originals.paddle_science().ExponentialMovingAverage(layer, 0.9)
    first = array(layer[1]._variance)

    def after_each(_: int) -> None:
        original.update()
        ema.update()

    train(layer, after_each)
    found = distances(original.params_shadow, ema)
    statistics = {name: found.pop(name) for name in ("1._mean", "1._variance")}
    assert max(found.values()) < 1e-5, found
    assert min(statistics.values()) > 0.1
    np.testing.assert_array_equal(array(original.params_shadow["1._variance"]), first)


def test_the_mean_of_paddle_science_counts_the_initial_weights() -> None:
    layer = network()
    original = originals.paddle_science().StochasticWeightAverage(layer)
    ema = EMA(layer, lambda t: 1 - 1 / (t + 1))

    def after_each(_: int) -> None:
        original.update()
        ema.update()

    train(layer, after_each)
    found = distances(original.params_shadow, ema)
    assert max(value for name, value in found.items() if not name.startswith("1._")) < 1e-5
    assert ema.tracks["average"].profile.initial_weight == pytest.approx(1 / 31)


def test_the_lines_for_paddle_science_run() -> None:
    left = runpy.run_path(str(PAGE / "science.py"))
    assert left["ema"].step == left["swa"].step == 10
    assert left["ema"].live == "raw"


@pytest.mark.filterwarnings("ignore")  # of PaddleFormers and what it imports
def test_the_lines_for_paddle_formers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped in CI: PaddleFormers brings 0.8 GB of packages."""
    pytest.importorskip("paddleformers")
    monkeypatch.chdir(tmp_path)
    left = runpy.run_path(str(PAGE / "formers.py"))
    assert left["average"].ema.step == 60
    assert left["averaged"]["eval_loss"] != left["raw"]["eval_loss"]
    assert (tmp_path / "runs" / "checkpoint-60" / "polyak.safetensors").exists()
