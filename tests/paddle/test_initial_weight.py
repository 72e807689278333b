"""The default, a function as a decay, and the warning about an average that is mostly what it began with."""

from pathlib import Path

import pytest
from paddle import nn

import polyak
from polyak import CheckpointError, Custom, Warmup
from polyak.paddle import EMA


def rule(t: int) -> float:
    return min(0.9, t / (t + 2))


def test_the_default_forgets_what_it_began_with() -> None:
    ema = EMA(nn.Linear(2, 1))
    ema.update(steps=500)
    assert ema.decay == Warmup(0.9999)
    with ema.average_parameters():
        assert ema.tracks["average"].profile.initial_weight == 0


def test_one_that_is_mostly_what_it_began_with_says_so_once(tmp_path: Path) -> None:
    ema = EMA(nn.Linear(2, 1), 0.9999)
    ema.update(steps=500)
    said = r"average_parameters: 95% of the average .*Warmup"
    with pytest.warns(UserWarning, match=said) as caught, ema.average_parameters():
        pass
    assert caught[0].filename == __file__
    ema.save(tmp_path / "average.safetensors")


def test_a_function_is_resumed_with_itself(tmp_path: Path) -> None:
    layer = nn.Linear(2, 1)
    ema = EMA(layer, rule)
    ema.update(steps=10)
    ema.save(tmp_path / "all.safetensors", resumable=True)
    again = EMA(layer, rule)
    again.load(tmp_path / "all.safetensors")
    assert again.tracks["average"].profile == ema.tracks["average"].profile
    with pytest.raises(CheckpointError, match=r"Custom\('rule'\) gives 0\.0009"):
        EMA(layer, Custom(lambda t: 0.5, "rule")).load(tmp_path / "all.safetensors")


def test_a_share_is_a_decay_here_too() -> None:
    ema = EMA(nn.Linear(2, 1), polyak.HalfLife(share=0.1))
    for _ in range(100):
        ema.update()
    assert ema.tracks["average"].profile.half_life == pytest.approx(10)
