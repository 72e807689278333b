"""An average that chooses its half-life, over a layer of Paddle; the rule is tested in tests/schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

import polyak
from polyak import Adaptive, CheckpointError, ConfigError, SwapError
from polyak.paddle import EMA
from tests.states import opened

from .conftest import array, fill, network

RULE = Adaptive(low=1, high=100, points=3)


def trained(decay: Any = RULE, steps: int = 20) -> EMA:
    ema = EMA(network(), decay)
    for step in range(steps):
        for parameter in ema.model.parameters():
            fill(parameter, float(step))
        ema.update()
    ema.model.eval()
    return ema


def weight(layer: nn.Layer) -> Any:
    return array(layer.parameters()[0])


def average(ema: EMA, track: str) -> Any:
    return array(ema.tracks[track].tensors["0.weight"])


def test_each_track_is_evaluated_while_it_is_live_and_the_best_is_meant_from_then_on(tmp_path: Path) -> None:
    ema = trained()
    raw, seen = weight(ema.model), dict[str, Any]()

    def evaluate(layer: nn.Layer) -> paddle.Tensor:
        seen[ema.live] = weight(layer)
        return paddle.to_tensor(1.0 if ema.live == "h100" else 0.0)

    assert (ema.following, ema.observe(evaluate), ema.following) == ("h10", 1.0, "h100")
    for name in RULE.decays:
        np.testing.assert_array_equal(seen[name], average(ema, name))
    np.testing.assert_array_equal(weight(ema.model), raw)
    np.testing.assert_array_equal(weight(ema.module), average(ema, "h100"))
    with ema.average_parameters() as layer:
        np.testing.assert_array_equal(weight(layer), average(ema, "h100"))
    ema.save(tmp_path / "average.safetensors")
    assert polyak.load(tmp_path / "average.safetensors").header.track == "h100"
    assert ema.metrics()["switches"] == 1


def test_an_error_decides_nothing() -> None:
    ema = trained()
    raw = weight(ema.model)

    def fail(layer: nn.Layer) -> float:
        raise RuntimeError("no more data")

    with pytest.raises(RuntimeError, match="no more data"):
        ema.observe(fail)
    with pytest.raises(ConfigError, match="h10, h100 missing"):
        ema.observe({"h1": 1.0})
    with pytest.raises(ConfigError, match="must be one number"):
        ema.observe(lambda layer: paddle.ones([2]))
    with ema.average_parameters(), pytest.raises(SwapError):
        ema.observe({"h1": 1.0, "h10": 0.0, "h100": 0.0})
    np.testing.assert_array_equal(weight(ema.model), raw)
    assert (ema.live, ema.following) == ("raw", "h10")


def test_it_resumes_with_its_choice_and_under_its_own_rule_alone(tmp_path: Path) -> None:
    ema = trained()
    ema.observe({"h1": 1.0, "h10": 0.5, "h100": 0.0})
    ema.save(tmp_path / "state.safetensors", resumable=True)
    paddle.save(ema.state_dict(), str(tmp_path / "state.pdema"))
    from_file, from_dict = trained(steps=0), trained(steps=0)
    from_file.load(tmp_path / "state.safetensors")
    from_dict.load_state_dict(paddle.load(str(tmp_path / "state.pdema")))
    for resumed in (from_file, from_dict):
        assert opened(resumed.state_dict())["adaptive"] == opened(ema.state_dict())["adaptive"]
        assert resumed.following == "h1"
    for other in (Adaptive(low=1, high=100, points=3, mode="min"), dict(RULE.decays)):
        with pytest.raises(CheckpointError, match="Adaptive"):
            trained(other, steps=0).load(tmp_path / "state.safetensors")
