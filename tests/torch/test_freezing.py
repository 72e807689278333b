"""Layers that are frozen and unfrozen while averaging runs, and resuming from any point of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyak import EMA, CheckpointError, Constant, Debiased
from tests.states import opened

# Before which step what becomes of which layer. At step 0 the first two are frozen.
SCHEDULE = {2: (1, True), 4: (2, False), 5: (0, True), 7: (2, True), 9: (0, False)}
STEPS = 11
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {"decay": 0.9},
    "two tracks": {"decay": {"short": 0.5, "long": Debiased(0.99)}},
    "bfloat16": {"decay": 0.9, "dtype": torch.bfloat16},
    "split": {"decay": 0.9, "dtype": "split"},
    "every third": {"decay": 0.9, "every": 3},
}
Carry = Callable[[EMA, EMA, Path], Any]


def build() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[:2].requires_grad_(False)
    return model


def train(model: nn.Sequential, ema: EMA, first: int, last: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(first, last):
        if step in SCHEDULE:
            layer, trained = SCHEDULE[step]
            model[layer].requires_grad_(trained)
        optimizer.zero_grad()
        if any(p.requires_grad for p in model.parameters()):
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            optimizer.step()
        ema.update()


def through_a_dict(ema: EMA, resumed: EMA, path: Path) -> None:
    torch.save(ema.state_dict(), path / "a.pt")
    resumed.load_state_dict(torch.load(path / "a.pt", weights_only=True))


def through_a_file(ema: EMA, resumed: EMA, path: Path) -> None:
    ema.save(path / "a.safetensors", resumable=True)
    resumed.load(path / "a.safetensors")


def same(a: EMA, b: EMA) -> None:
    assert (a.step, a.tracks.keys()) == (b.step, b.tracks.keys())
    for name, track in a.tracks.items():
        other = b.tracks[name]
        assert (track.tensors.keys(), track.joined) == (other.tensors.keys(), other.joined)
        assert all(torch.equal(t, other.tensors[k]) for k, t in track.tensors.items())
        assert all(torch.equal(t, other.residuals[k]) for k, t in track.residuals.items())
        assert all(track.profile_of(k) == other.profile_of(k) for k in track.tensors)


@pytest.mark.parametrize("carry", [through_a_dict, through_a_file])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_run_resumed_at_any_point_of_a_schedule_is_the_run(
    options: dict[str, Any], carry: Carry, tmp_path: Path
) -> None:
    straight_model, model = build(), build()
    straight, whole = EMA(straight_model, **options), EMA(model, **options)
    train(straight_model, straight, 0, STEPS)
    for step in range(STEPS):
        resumed_model = build()
        resumed_model.load_state_dict(model.state_dict())
        resumed = EMA(resumed_model, **options)
        carry(whole, resumed, tmp_path)
        for at, (layer, trained) in SCHEDULE.items():
            if at < step:
                resumed_model[layer].requires_grad_(trained)
        train(resumed_model, resumed, step, STEPS)
        same(straight, resumed)
        train(model, whole, step, step + 1)


def test_what_was_frozen_there_and_is_trained_here_joins_with_the_value_it_has() -> None:
    model = build()
    ema = EMA(model, 0.9)
    train(model, ema, 0, 2)
    resumed_model = build().requires_grad_(True)
    resumed = EMA(resumed_model, 0.9)
    with torch.no_grad():
        for p in model[:2].parameters():  # the weights this run goes on with
            p.fill_(7)
    resumed_model.load_state_dict(model.state_dict())
    assert not resumed.load_state_dict(ema.state_dict())
    track = resumed.tracks["average"]
    joined = {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert track.joined == dict.fromkeys(joined, 2)
    assert all((track.tensors[name] == 7).all() for name in joined)
    assert torch.equal(track.tensors["2.weight"], ema.tracks["average"].tensors["2.weight"])


def test_a_refused_state_leaves_frozen_parameters_out() -> None:
    model = build()
    ema = EMA(model, 0.9)
    train(model, ema, 0, 3)
    state = ema.state_dict()
    del state["tracks"]["average"]["tensors"]["2.bias"]
    fresh = EMA(build(), 0.9)
    before = fresh.tracks["average"].tensors
    with pytest.raises(CheckpointError, match=r"2\.bias: not in the state"):
        fresh.load_state_dict(state)
    assert fresh.tracks["average"].tensors is before
    assert set(before) == {"2.weight", "2.bias", "1.running_mean", "1.running_var"}
    assert fresh.load_state_dict(state, strict=False).missing == ["2.bias"]
    assert {"1.weight", "1.bias"} < set(fresh.tracks["average"].tensors)


@pytest.mark.parametrize("chosen", [{"exclude": "1.*"}, {"include": "2.*"}])
def test_what_was_left_out_by_name_is_not_taken_in(chosen: dict[str, str]) -> None:
    model = build()
    ema = EMA(model, 0.9)
    train(model, ema, 0, 3)
    fresh = EMA(build(), 0.9, **chosen)
    with pytest.raises(CheckpointError, match=r"1\.weight.*in the state only"):
        fresh.load_state_dict(ema.state_dict())


def test_another_shape_is_refused_though_frozen() -> None:
    model = build()
    ema = EMA(model, 0.9)
    train(model, ema, 0, 3)
    state = opened(ema.state_dict())
    state["tracks"]["average"]["tensors"]["1.weight"] = torch.ones(9)
    with pytest.raises(CheckpointError, match=r"1\.weight \(9,\) for \(4,\)"):
        EMA(build(), 0.9).load_state_dict(state)


def test_a_track_that_the_state_lacks_gets_the_newcomers_too() -> None:
    model = build()
    ema = EMA(model, {"a": 0.9})
    train(model, ema, 0, 3)
    fresh_model = build()
    fresh = EMA(fresh_model, {"a": 0.9, "b": Constant(0.5)})
    fresh.load_state_dict(ema.state_dict(), strict=False)
    assert fresh.tracks["a"].tensors.keys() == fresh.tracks["b"].tensors.keys()
    train(fresh_model, fresh, 3, 5)
    assert fresh.step == 5
