"""A function as the decay of an EMA: averaged, saved, shown, resumed with the same function and no other."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from polyak import EMA, CheckpointError, Custom
from polyak.cli.describe import CheckpointSummary, describe
from tests.states import opened


def rule(t: int) -> float:
    return min(0.9, t / (t + 2))


def train(model: nn.Linear, ema: EMA, steps: int = 10) -> None:
    for _ in range(steps):
        with torch.no_grad():
            model.weight.add_(1)
        ema.update()


def trained() -> tuple[nn.Linear, EMA]:
    model = nn.Linear(2, 1)
    ema = EMA(model, rule)
    train(model, ema)
    return model, ema


def resumed(ema: EMA, model: nn.Linear, decay: polyak.schedules.decay.DecayLike) -> EMA:
    other = EMA(copy.deepcopy(model), decay)
    other.load_state_dict(ema.state_dict())
    return other


def test_it_averages_as_the_formula_says() -> None:
    model = nn.Linear(2, 1)
    average = model.weight.detach().clone()
    ema = EMA(model, {"own": rule, "plain": 0.9})
    for t in range(1, 11):
        train(model, ema, 1)
        average.lerp_(model.weight.detach(), 1 - rule(t))
    assert torch.allclose(ema.module_of("own").weight, average)
    assert ema.metrics()["own/decay"] == rule(10)


def test_a_run_is_resumed_with_the_same_function() -> None:
    model, ema = trained()
    other = resumed(ema, model, rule)
    assert other.tracks["average"].profile == ema.tracks["average"].profile
    train(model, ema)
    assert isinstance(other.model, nn.Linear)
    train(other.model, other)
    assert torch.equal(other.module.weight, ema.module.weight)
    assert other.tracks["average"].profile == ema.tracks["average"].profile


def test_another_function_is_refused_by_its_name_or_by_what_it_gives() -> None:
    model, ema = trained()
    with pytest.raises(CheckpointError, match=r"Custom\('other'\) \(state: Custom\('rule'\)"):
        resumed(ema, model, Custom(rule, "other"))
    with pytest.raises(CheckpointError, match=r"Custom\('rule'\) gives 0\.5 where .* gave 0\.833333333"):
        resumed(ema, model, Custom(lambda t: 0.5, "rule"))


def test_a_function_within_another_decay_is_resumed_too() -> None:
    decay = polyak.Piecewise([(5, rule), (None, 0.9)])
    model = nn.Linear(2, 1)
    ema = EMA(model, decay)
    train(model, ema)
    assert resumed(ema, model, decay).tracks["average"].profile == ema.tracks["average"].profile


def test_what_is_resumed_otherwise_says_that_its_past_is_unknown() -> None:
    model, ema = trained()
    other = EMA(model, 0.99)
    assert other.load_state_dict(ema.state_dict(), strict=False).schedules
    train(model, other, 1)
    numbers = other.metrics()
    assert numbers["decay"] == 0.99
    assert math.isnan(numbers["half_life"])
    assert math.isnan(numbers["initial_weight"])


def test_files_are_read_and_shown_by_any_program(tmp_path: Path) -> None:
    model, ema = trained()
    ema.save(tmp_path / "a.safetensors")
    ema.save(tmp_path / "all.safetensors", resumable=True)
    header = polyak.load(tmp_path / "a.safetensors").header
    assert str(header.decay) == "Custom('rule'), a function, which is not in the file"
    assert header.profile is not None
    assert header.profile.steps == 10
    for name in ("a", "all"):
        found = describe(tmp_path / f"{name}.safetensors")
        assert isinstance(found, CheckpointSummary)
        [part] = found.parts
        assert (str(part.decay), part.figures) == (str(header.decay), None)
    EMA(model, rule).load(tmp_path / "all.safetensors")


def test_a_class_of_ones_own_is_read_where_it_is_imported(tmp_path: Path) -> None:
    config = {"kind": "Sawtooth", "period": 5}
    model, ema = trained()
    state = opened(ema.state_dict())
    state["tracks"]["average"]["decay"] = config
    with pytest.raises(CheckpointError, match=r"Sawtooth\(period=5\), which is not known here"):
        EMA(model, rule).load_state_dict(state)
