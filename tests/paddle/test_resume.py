"""A training that is killed in the middle and started again ends, bit by bit, as if it had never been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from polyak.paddle import EMA
from tests.golden_files.make_states import SETTINGS as OLD_SETTINGS
from tests.golden_files.make_states import STEPS as OLD_STEPS
from tests.states import opened

from .conftest import array, assert_equal, averages, fill, network
from .resume_worker import CASES, STEPS, Run, saved


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process, killed after twelve steps of 23, and finished in another."""
    folder = tmp_path_factory.mktemp("resume")
    command = [sys.executable, "-m", "tests.paddle.resume_worker", str(folder)]
    where = {"cwd": Path(__file__).parents[2], "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "timeout": 120}
    first = subprocess.run([*command, "12"], check=False, **where)
    assert first.returncode == -signal.SIGKILL
    assert all(int(saved(folder / case)[-1].name) == 10 for case in CASES)
    subprocess.run(command, check=True, **where)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_continuing_equals_never_having_stopped(killed: Path, case: str) -> None:
    whole, resumed = Run(case), Run(case)
    for _ in range(STEPS):
        whole.step()
    resumed.load(killed / case / str(STEPS))
    expected, got = opened(whole.ema.state_dict()), opened(resumed.ema.state_dict())
    assert got.pop("run") != expected.pop("run")  # the run goes on under its first id
    assert_equal(got, expected)
    assert_equal(dict(resumed.layer.state_dict()), dict(whole.layer.state_dict()))


def test_a_state_from_before_it_had_a_text_is_continued() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1D(4), nn.Linear(4, 2), nn.Linear(2, 2))
    freeze(layer[3], True)
    ema = EMA(layer, **OLD_SETTINGS)
    state = paddle.load(str(Path(__file__).parents[1] / "golden_files/states/paddle.pdparams"))
    assert not ema.load_state_dict(state)
    assert_equal(opened(ema.state_dict()), state)
    assert (ema.step, ema.metrics()["skipped_tensors"]) == (OLD_STEPS, {"0.bias": 1})


def freeze(layer: nn.Layer, frozen: bool) -> None:
    for parameter in layer.parameters():
        parameter.stop_gradient = frozen


def half_frozen() -> nn.Layer:
    layer = network()
    freeze(layer[0], True)
    return layer


@pytest.mark.parametrize("by_file", [False, True])
def test_a_layer_unfrozen_since_the_beginning_goes_on_with_its_average(by_file: bool, tmp_path: Path) -> None:
    layer = half_frozen()
    ema = EMA(layer, 0.9)
    ema.update()
    freeze(layer[0], False)
    for value in (1, 2, 4):
        fill(layer[0].weight, value)
        ema.update()
    again = half_frozen()
    again.set_state_dict(layer.state_dict())
    resumed = EMA(again, 0.9)
    if by_file:
        ema.save(tmp_path / "a.safetensors", resumable=True)
        resumed.load(tmp_path / "a.safetensors")
    else:
        resumed.load_state_dict(ema.state_dict())
    freeze(again[0], False)
    for one, average in ((layer, ema), (again, resumed)):
        fill(one[0].weight, 8)
        average.update()
    assert averages(resumed).keys() == averages(ema).keys()
    for name, average in averages(ema).items():
        np.testing.assert_array_equal(array(averages(resumed)[name]), array(average))
    assert resumed.tracks["average"].joined == ema.tracks["average"].joined == {"0.weight": 2, "0.bias": 2}


def test_a_layer_frozen_then_and_trained_now_joins_with_its_present_value() -> None:
    ema = EMA(half_frozen(), 0.9)
    ema.update()
    layer = network()
    resumed = EMA(layer, 0.9)
    fill(layer[0].weight, 7)
    assert not resumed.load_state_dict(ema.state_dict())
    assert (array(averages(resumed)["0.weight"]) == 7).all()
    assert resumed.tracks["average"].joined == {"0.weight": 1, "0.bias": 1}
