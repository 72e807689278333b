"""One average whose tensors have different decays, chosen by their names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

import polyak
from polyak import ByName, CheckpointError, ConfigError, HalfLife, Profile
from polyak.paddle import EMA, Teacher
from tests.work import lines_run

from .conftest import array, network

PARTS = ByName({"0.*": HalfLife(steps=10), "1.*": 0.5, "*": 0.99})


def move(layer: nn.Layer, seed: int) -> None:
    random = np.random.default_rng(seed)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        tensor.set_value(tensor + paddle.to_tensor(random.normal(size=tensor.shape)).astype(tensor.dtype))


def advance(ema: EMA[Any], steps: int) -> None:
    for _ in range(steps):
        move(ema.model, ema.step)
        ema.update()


def trained(decay: Any = PARTS, **options: Any) -> EMA[Any]:
    paddle.seed(0)
    ema = EMA(network(), decay, **options)
    advance(ema, 5)
    return ema


def same(one: Tensor, other: Tensor) -> bool:
    return bool((array(one) == array(other)).all())


@pytest.mark.parametrize("dtype", [None, "bfloat16", "split"])
def test_each_tensor_is_bit_by_bit_that_of_an_average_with_its_decay(dtype: Any) -> None:
    named = trained(dtype=dtype).tracks["average"]
    alone = {pattern: trained(decay, dtype=dtype).tracks["average"] for pattern, decay in PARTS.rules}
    for name, tensor in named.tensors.items():
        track = alone[named.pattern_of(name)]
        assert same(tensor, track.tensors[name]), name
        assert named.profile_of(name) == track.profile


def test_patterns_are_checked_when_the_average_is_made() -> None:
    with pytest.raises(ConfigError, match=r"1\.weight is matched by no pattern"):
        EMA(network(), ByName({"0.*": 0.9, "2.*": 0.9}))
    with pytest.raises(ConfigError, match=r"'head\*' matches no averaged tensor"):
        EMA(network(), ByName({"head*": 0.9, "*": 0.5}))
    with pytest.raises(ConfigError, match=r"'0\.\*': …}\) has no effect"):
        EMA(network(), ByName({"*": 0.9, "0.*": 0.5}))


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation")
def test_names_have_no_prefix_of_a_wrapper() -> None:
    ema = EMA(paddle.DataParallel(network()), ByName({"0.weight": 0.9, "*": 0.5}))
    assert [name for name, pattern in ema.tracks["average"].patterns.items() if pattern != "*"] == [
        "0.weight"
    ]


def test_nan_is_counted_once_however_many_engines_there_are() -> None:
    ema = trained()
    for place in (0, 2):
        ema.model[place].bias.set_value(ema.model[place].bias * float("nan"))
    ema.update()
    ema.update()
    metrics = ema.metrics()
    assert (metrics["skipped"], metrics["skipped_tensors"]) == (2, {"0.bias": 2, "2.bias": 2})
    assert metrics["engine"].count("native") <= 1


def test_each_parameter_is_read_once() -> None:
    ema = trained({"a": PARTS, "b": 0.9})
    pairs = [pair for engine in ema._averages.updater._engines for pair in engine.pairs]  # pyright: ignore
    assert sorted(pair.name for pair in pairs) == sorted(ema.tracks["a"].tensors)


def test_an_update_with_a_plain_decay_runs_no_more_lines_than_before_there_were_names() -> None:
    ema = EMA(network(), 0.99)
    for _ in range(3):
        ema.update()
    if "native" not in ema.metrics()["engine"]:
        pytest.skip("counted with the C kernel")
    assert lines_run(ema.update) <= 68


def test_it_is_swapped_saved_and_loaded_as_one(tmp_path: Path) -> None:
    ema = trained({"a": PARTS, "b": 0.9})
    held = ema.tracks["a"].tensors
    with ema.average_parameters("a") as layer:
        live = dict(layer.state_dict())
        assert all(same(live[name], tensor) for name, tensor in held.items())
    ema.save(tmp_path / "a.safetensors", "a")
    average = polyak.load(tmp_path / "a.safetensors")
    for name, tensor in held.items():
        assert average.header.profile_of(name) == ema.tracks["a"].profile_of(name)
        np.testing.assert_array_equal(average.tensors[name], tensor.numpy())
    ema.save(tmp_path / "all.safetensors", resumable=True)
    again = EMA(copy.deepcopy(ema.model), {"a": PARTS, "b": 0.9})
    assert not again.load(tmp_path / "all.safetensors")
    twin = copy.deepcopy(ema)
    for one in (ema, again, twin):
        advance(one, 3)
    for track in ("a", "b"):
        for name, tensor in ema.tracks[track].tensors.items():
            assert same(tensor, again.tracks[track].tensors[name]), name
            assert same(tensor, twin.tracks[track].tensors[name]), name
    with pytest.raises(CheckpointError, match="one history for both"):
        EMA(network(), {"a": 0.9, "b": 0.9}).load_state_dict(ema.state_dict())


def test_a_teacher_can_have_one() -> None:
    student, decay = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ByName({"0.*": 1.0, "*": 0.5})
    teacher = Teacher(student, decay)
    move(student, 1)
    before = {name: array(tensor) for name, tensor in teacher.module.state_dict().items()}
    teacher.update()
    after = {name: array(tensor) for name, tensor in teacher.module.state_dict().items()}
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {"1.weight", "1.bias"}
    assert teacher.ema.tracks["average"].profile_of("1.bias") == Profile.from_decay(0.5, 1)
