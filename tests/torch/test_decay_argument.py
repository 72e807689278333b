"""β, and what others call momentum, rate or τ: said before an average is wrong."""

import warnings
from typing import Any

import pytest
from torch import nn

import polyak
from polyak import EMA, ConfigError, Constant


def model() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("decay", "meant"),
    [(0.005, "0.995"), (0.0001, "0.9999"), (0.1, "0.9"), (0.49, "0.51"), ({"a": 0.999, "b": 2e-4}, "0.9998")],
)
def test_a_plain_small_decay_warns_once_with_what_was_probably_meant(decay: Any, meant: str) -> None:
    with pytest.warns(UserWarning, match=rf"did you mean {meant}\?.*polyak\.Constant") as caught:
        EMA(model(), decay)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "decay",
    [0, 0.0, 0.5, 0.9999, 1.0, Constant(0.005), {"a": Constant(0.1)}, polyak.Debiased(0.1), polyak.Uniform()],
)
def test_what_is_meant_does_not(decay: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert EMA(model(), decay).step == 0


def test_a_decay_is_read_but_not_assigned() -> None:
    ema = EMA(model(), {"a": 0.9, "b": 0.99})
    assert ema.decay == Constant(0.9)
    with pytest.raises(ConfigError, match=r"ema\.decay = 0\.999: .*polyak\.Piecewise.*strict=False"):
        ema.decay = 0.999
    with pytest.raises(ConfigError, match=r"ema\.tracks\['b'\]\.decay = 0\.5: .*polyak\.Piecewise.*strict"):
        ema.tracks["b"].decay = 0.5
    assert ema.decay == Constant(0.9)
    assert ema.tracks["b"].decay == Constant(0.99)


def test_the_way_to_another_decay_that_the_error_names_goes() -> None:
    net = model()
    ema = EMA(net, 0.9)
    ema.update()
    again = EMA(net, 0.99)
    assert again.load_state_dict(ema.state_dict(), strict=False).schedules
    again.update()
    assert again.step == 2
    assert again.tracks["average"].profile.weights()[-1] == pytest.approx(0.01)
