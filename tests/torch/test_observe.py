"""An average that chooses its half-life: what is followed, what that means everywhere, and what resumes."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak
from polyak import Adaptive, BestCheckpoint, CheckpointError, ConfigError, SwapError
from polyak.torch import EMA
from tests.states import opened

RULE = Adaptive(low=1, high=100, points=3)
NAMES = ["h1", "h10", "h100"]


def trained(decay: Any = RULE, steps: int = 40) -> EMA:
    """An EMA of a model whose weights grew, so that every track is different."""
    torch.manual_seed(0)
    ema = EMA(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), decay)
    for _ in range(steps):
        move(ema)
        ema.update()
    ema.model.eval()
    return ema


@torch.no_grad()
def move(ema: EMA) -> None:
    for parameter in ema.model.parameters():
        parameter.add_(torch.rand(parameter.shape))


def weight(model: nn.Module) -> Tensor:
    return next(model.parameters()).detach().clone()


def metrics(**best: float) -> dict[str, float]:
    return dict.fromkeys(NAMES, 0.0) | best


def always(metric: Any) -> Any:
    def evaluate(_: nn.Module) -> Any:
        return metric

    return evaluate


def average(ema: EMA, track: str) -> Tensor:
    return ema.tracks[track].tensors["0.weight"]


def test_each_track_is_evaluated_once_while_it_is_live_and_the_followed_ones_metric_comes_back() -> None:
    ema = trained()
    raw, seen = weight(ema.model), list[tuple[str, Tensor]]()

    def evaluate(model: nn.Module) -> float:
        assert model is ema.model
        seen.append((ema.live, weight(model)))
        return {"h1": 0.2, "h10": 0.1, "h100": 0.3}[ema.live]

    assert ema.following == "h10"
    assert ema.observe(evaluate) == 0.3
    assert ema.following == "h100"
    assert [name for name, _ in seen] == NAMES
    for name, value in seen:
        assert torch.equal(value, average(ema, name))
    assert ema.live == "raw"
    assert torch.equal(weight(ema.model), raw)


def test_the_metric_that_comes_back_is_the_followed_ones_and_not_the_best() -> None:
    ema = trained()
    assert ema.observe(metrics(h100=1.0)) == 1.0
    assert ema.observe(metrics(h1=0.5)) == 0.0  # half of its lead is left, so that h100 stays
    assert ema.following == "h100"


def test_everything_that_names_no_track_means_the_followed_one(tmp_path: Path) -> None:
    ema = trained()
    ema.observe(metrics(h100=1.0))
    followed = average(ema, "h100").clone()
    assert not torch.equal(followed, average(ema, "h10"))
    with ema.average_parameters() as model:
        assert ema.live == "h100"
        assert torch.equal(weight(model), followed)
    assert torch.equal(weight(ema.module), followed)
    assert torch.equal(ema(torch.ones(1, 2)), ema.module_of("h100")(torch.ones(1, 2)))
    ema.save(tmp_path / "average.safetensors")
    assert polyak.load(tmp_path / "average.safetensors").header.track == "h100"
    assert ema.decay == RULE.decays["h100"]
    other = copy.deepcopy(ema.model)
    ema.copy_to(other)
    assert torch.equal(weight(other), followed)
    best = BestCheckpoint(tmp_path / "best.safetensors")
    assert best.consider(ema, 0.9)
    assert best.record is not None
    assert best.record.track == polyak.load(best.path).header.track == "h100"
    ema.copy_to()
    assert torch.equal(weight(ema.model), followed)


def test_a_tensor_is_a_number_and_the_metrics_say_what_is_followed() -> None:
    ema = trained()
    assert ema.observe(lambda model: torch.tensor([0.5 if ema.live == "h1" else 0.25])) == 0.5
    numbers = ema.metrics()
    assert (numbers["following"], numbers["switches"]) == ("h1", 1)
    assert "following" not in trained(0.9).metrics()
    assert repr(ema) == f"EMA(Sequential, decay={RULE}, step=40)"


def test_an_error_in_the_evaluation_restores_the_raw_weights_and_decides_nothing() -> None:
    ema = trained()
    ema.observe(metrics(h1=1.0))
    raw, before = weight(ema.model), opened(ema.state_dict())["adaptive"]

    def fail(model: nn.Module) -> float:
        if ema.live == "h100":
            raise RuntimeError("no more data")
        return 5.0

    with pytest.raises(RuntimeError, match="no more data"):
        ema.observe(fail)
    assert ema.live == "raw"
    assert torch.equal(weight(ema.model), raw)
    assert opened(ema.state_dict())["adaptive"] == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"h1": 1.0}, "h10, h100 missing"),
        (metrics(h3=1.0), "no track is named 'h3'"),
        (metrics(h1=math.nan), r"metrics\['h1'\]=nan: must be finite"),
        (always(math.inf), r"metrics\['h1'\]=inf: must be finite"),
        (always(torch.ones(2)), "must be one number"),
        (always(None), "must be one number"),
    ],
    ids=["missing", "unknown", "nan", "inf", "two", "none"],
)
def test_metrics_that_decide_nothing_are_refused(given: Any, message: str) -> None:
    ema = trained()
    ema.observe(metrics(h1=1.0))
    before = opened(ema.state_dict())["adaptive"]
    with pytest.raises(ConfigError, match=message):
        ema.observe(given)
    assert opened(ema.state_dict())["adaptive"] == before
    assert ema.live == "raw"


def test_nothing_is_observed_while_an_average_is_live() -> None:
    ema = trained()
    for given in (metrics(h1=1.0), always(1.0)):
        with ema.average_parameters(), pytest.raises(SwapError, match=r"observe: the model holds"):
            ema.observe(given)
    assert ema.following == "h10"
    assert opened(ema.state_dict())["adaptive"]["scores"] == {}


def test_without_a_rule_there_is_nothing_to_choose() -> None:
    ema = trained({"short": 0.5, "long": 0.9})
    assert ema.following == "short"
    with pytest.raises(ConfigError, match=r"nothing to choose; make the EMA with\s+decay=polyak.Adaptive"):
        ema.observe({"short": 1.0, "long": 0.0})


def test_it_is_no_decay_among_others() -> None:
    with pytest.raises(ConfigError, match="Adaptive is several tracks already"):
        EMA(nn.Linear(2, 1), {"a": RULE, "b": 0.9})  # pyright: ignore[reportArgumentType]


def through_dict(ema: EMA, path: Path) -> Any:
    torch.save(ema.state_dict(), path / "state.pt")
    return torch.load(path / "state.pt", weights_only=True)


def test_a_resumed_run_decides_as_one_that_was_not_interrupted(tmp_path: Path) -> None:
    whole = trained()
    whole.observe(metrics(h1=1.0, h10=0.3))
    whole.observe(metrics(h1=0.1, h10=0.9))
    from_dict, from_file, copied, pickled = trained(steps=0), trained(steps=0), *copies(whole)
    from_dict.load_state_dict(through_dict(whole, tmp_path))
    whole.save(tmp_path / "state.safetensors", resumable=True)
    from_file.load(tmp_path / "state.safetensors")
    later = [metrics(h10=0.2), metrics(h100=0.4), metrics(h100=1.1)]
    for ema in (from_dict, from_file, copied, pickled):
        assert opened(ema.state_dict())["adaptive"] == opened(whole.state_dict())["adaptive"]
    for one in later:
        whole.observe(one)
        for ema in (from_dict, from_file, copied, pickled):
            ema.observe(one)
            assert opened(ema.state_dict())["adaptive"] == opened(whole.state_dict())["adaptive"]
    assert whole.metrics()["switches"] == 3  # so there was something to lose
    json.dumps(opened(whole.state_dict())["adaptive"])


def copies(ema: EMA) -> tuple[EMA, EMA]:
    return copy.deepcopy(ema), pickle.loads(pickle.dumps(ema))


SAME_TRACKS: dict[str, Any] = dict(RULE.decays)


@pytest.mark.parametrize(
    ("theirs", "mine", "message"),
    [
        (RULE, Adaptive(1, 100, 3, smoothing=0.25), r"smoothing=0.25.*\(state: Adaptive\(.*smoothing=0.5"),
        (RULE, SAME_TRACKS, r"no Adaptive \(state: Adaptive\("),
        (SAME_TRACKS, RULE, r"\(state: no Adaptive\)"),
        (RULE, Adaptive(1, 1000, 4), r"track h1000"),
    ],
    ids=["another", "none", "new", "other half-lives"],
)
def test_another_rule_is_refused_and_under_strict_false_the_own_choice_is_kept(
    theirs: Any, mine: Any, message: str
) -> None:
    saved, ema = trained(theirs), trained(mine, steps=3)
    if theirs is RULE:
        saved.observe(metrics(h1=1.0))
    following, step = ema.following, ema.step
    with pytest.raises(CheckpointError, match=message):
        ema.load_state_dict(saved.state_dict())
    assert (ema.following, ema.step) == (following, step)
    assert ema.load_state_dict(saved.state_dict(), strict=False)
    assert (ema.following, ema.step) == (following, 40)


@pytest.mark.parametrize(
    "broken", [{"following": "h3"}, {"scores": {"h1": 1.0}}, {"switches": None}, {"rule": {}}], ids=str
)
def test_a_malformed_choice_is_refused_and_nothing_is_loaded(broken: dict[str, Any]) -> None:
    saved, ema = opened(trained().state_dict()), trained(steps=3)
    saved["adaptive"] |= broken
    for strict in (True, False):
        with pytest.raises(CheckpointError, match="Nothing was loaded"):
            ema.load_state_dict(saved, strict)
    assert ema.step == 3


def test_a_reset_forgets_the_choice_and_one_of_some_tensors_does_not() -> None:
    ema = trained()
    ema.observe(metrics(h1=1.0))
    ema.reset("0.*")
    assert ema.following == "h1"
    ema.reset()
    assert ema.following == "h10"
    assert opened(ema.state_dict())["adaptive"]["scores"] == {}


def test_observing_changes_no_average_and_no_profile() -> None:
    seen, unseen = trained(), trained()
    for _ in range(3):
        seen.observe(lambda model: float(weight(model).sum()))
        for ema in (seen, unseen):
            torch.manual_seed(ema.step)
            move(ema)
            ema.update()
    for name in NAMES:
        assert torch.equal(average(seen, name), average(unseen, name))
        assert seen.tracks[name].profile == unseen.tracks[name].profile


def test_a_module_taken_before_a_switch_stays_that_of_its_track() -> None:
    ema = trained()
    before = ema.module
    ema.observe(metrics(h1=1.0))
    assert ema.module is not before
    assert torch.equal(weight(before), average(ema, "h10"))
