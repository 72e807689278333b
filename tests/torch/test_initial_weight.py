"""An average that is still mostly the weights it began with says so once, before it is used."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from polyak import EMA, BestCheckpoint, ConfigError, HalfLife, Warmup
from polyak._core.clock import in_steps
from polyak._core.initial_weight import warn_if_older_than_the_run
from polyak.schedules.decay import DecayLike


def trained(steps: int, decay: DecayLike | None = 0.9999, **options: int) -> EMA:
    model = nn.Linear(2, 1)
    ema = EMA(model, **options) if decay is None else EMA(model, decay, **options)
    for _ in range(steps):
        ema.update()
    return ema


def evaluate(ema: EMA, folder: Path) -> None:
    with ema.average_parameters():
        pass


USES: dict[str, Callable[[EMA, Path], object]] = {
    "average_parameters": evaluate,
    "module": lambda ema, folder: ema(torch.zeros(1, 2)),
    "copy_to": lambda ema, folder: ema.copy_to(copy.deepcopy(ema.model)),
    "save": lambda ema, folder: ema.save(folder / "average.safetensors"),
}


@pytest.mark.parametrize("use", USES)
def test_each_use_of_it_warns_with_the_share_and_the_cure(use: str, tmp_path: Path) -> None:
    ema = trained(500)
    said = rf"^{use}: 95% of the average 'average' .* 500 steps of .*0\.9999.* half .* 6,931 steps.*Warmup"
    with pytest.warns(UserWarning, match=said) as caught:
        USES[use](ema, tmp_path)
    assert len(caught) == 1


def test_a_run_warns_once() -> None:
    model = nn.Linear(2, 1)
    ema = EMA(model, {"a": 0.9999, "b": 0.99999})
    ema.update(steps=500)
    with pytest.warns(UserWarning, match="average 'b'") as caught, ema.average_parameters("b"):
        pass
    assert caught[0].filename == __file__
    with ema.average_parameters("a"):
        pass
    ema.update(steps=500)
    assert ema.module is not None


def test_a_target_network_is_meant_to_lag() -> None:
    """It is asked for from the first step on, when nobody could expect more of it."""
    online = nn.Linear(2, 1)
    target = EMA(online, 0.995)
    for _ in range(120):
        target.module(torch.zeros(1, 2))
        target.update()
    assert target.tracks["average"].profile.initial_weight > 0.5
    assert target.module is not None


def test_a_restart_begins_another_run() -> None:
    ema = trained(500)
    with pytest.warns(UserWarning, match="95%"):
        assert ema.module is not None
    ema.reset()
    ema.update(steps=200)
    with pytest.warns(UserWarning, match="98%"):
        assert ema.module is not None


@pytest.mark.parametrize(
    "ema",
    [
        trained(500, None),
        trained(500, Warmup(0.99999)),
        trained(500, HalfLife(share=0.1)),
        trained(500, 0.99),
        trained(99),  # nobody expects more of it yet
        trained(500, start=450),
    ],
    ids=["default", "warm-up", "share", "short", "early", "not begun"],
)
def test_what_can_be_trusted_says_nothing(ema: EMA, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for use in USES.values():
            use(ema, tmp_path)


def test_a_file_to_resume_from_says_nothing(tmp_path: Path) -> None:
    ema = trained(500)
    ema.save(tmp_path / "all.safetensors", resumable=True)
    ema.save(tmp_path / "raw.safetensors", "raw")
    ema.state_dict()


def test_the_best_checkpoint_says_once_why_there_is_none(tmp_path: Path) -> None:
    ema, best = trained(500), BestCheckpoint(tmp_path / "best.safetensors")
    with pytest.warns(UserWarning, match=r"nothing is saved yet at step 500, because 95% .*Warmup") as caught:
        best.consider(ema, 0.5)
    assert caught[0].filename == __file__
    assert not best.consider(ema, 0.6)
    assert [one.decision for one in best.decisions] == ["keep", "keep"]
    early = BestCheckpoint(tmp_path / "other.safetensors")
    assert not early.consider(trained(50), 0.5)


def test_one_saved_as_best_all_the_same_says_what_it_is(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path / "best.safetensors", after=100)
    with pytest.warns(UserWarning, match="95% of the average"):
        assert best.consider(trained(500), 0.5)


def test_the_default_forgets_what_it_began_with() -> None:
    ema = trained(2, None)
    assert ema.decay == Warmup(0.9999)
    assert ema.tracks["average"].profile.initial_weight == 0
    assert trained(1, 0.9999).decay == polyak.Constant(0.9999)


@pytest.mark.parametrize("start", ["5%", "12.5 %"])
def test_a_share_of_a_run_whose_length_nobody_knows_is_refused(start: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown here.*start=int\(0\.(05|125) \* steps\)"):
        EMA(nn.Linear(2, 1), start=start)


@pytest.mark.parametrize("start", ["5", "100%", "-1%", "half"])
def test_what_is_no_share_is_refused(start: str) -> None:
    with pytest.raises(ConfigError, match='such as "5%"'):
        in_steps(start, 1000)


def test_a_share_of_a_known_run_is_a_step() -> None:
    assert [in_steps(start, 1000) for start in ("5%", "12.5 %", "0%", 7)] == [50, 125, 0, 7]


def test_a_decay_longer_than_the_run_is_told_before_it() -> None:
    ema = EMA(nn.Linear(2, 1), {"short": 0.99, "long": 0.9999})
    with pytest.warns(UserWarning, match=r"'long' will be older than the run: 95% .* after 500 steps"):
        warn_if_older_than_the_run(ema.tracks, 500)
    ema.update(steps=500)
    ema.module_of("long")  # it was said
    warn_if_older_than_the_run(trained(0).tracks, 50_000)
    warn_if_older_than_the_run(trained(0).tracks, 50)
    warn_if_older_than_the_run(trained(0, None).tracks, 500)
