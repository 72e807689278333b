"""Every trainer takes the same arguments: those of `polyak.EMA`."""

import inspect
from importlib import import_module
from typing import Any, ForwardRef

import pytest

import polyak
from polyak.trainers._common import EMAOptions
from tests.shims import torchvision_without_ops

torchvision_without_ops()

OWN = {
    "lightning": {"optimizer", "name"},
    "ignite": {"model", "optimizer", "log_every"},
}
TRAINERS = ("lightning", "transformers", "ultralytics", "ignite", "keras")


def weight_averaging(trainer: str) -> Any:
    if trainer == "lightning":  # either of two packages
        return pytest.importorskip("polyak.trainers.lightning").WeightAveraging
    pytest.importorskip(trainer)
    return import_module(f"polyak.trainers.{trainer}").WeightAveraging


def test_the_options_are_those_of_the_ema_and_of_the_same_types() -> None:
    parameters = dict(inspect.signature(polyak.EMA.__init__).parameters)
    taken = {name: p.annotation for name, p in parameters.items() if name not in ("self", "model", "decay")}
    assert {name: ForwardRef(kind) for name, kind in taken.items()} == {
        name: ForwardRef(kind.__forward_arg__) for name, kind in EMAOptions.__annotations__.items()
    }


@pytest.mark.parametrize("trainer", TRAINERS)
def test_each_trainer_takes_the_same_arguments(trainer: str) -> None:
    parameters = inspect.signature(weight_averaging(trainer)).parameters
    first, *others = parameters.values()
    assert (first.name, first.default) == ("decay", polyak.Warmup(0.9999))
    assert {p.name for p in others} == {"evaluate", "report", "options"} | OWN.get(trainer, set())
    assert {p.kind for p in others} == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("trainer", ["lightning", "transformers", "ultralytics", "keras"])
def test_a_misspelt_argument_is_refused_before_training(trainer: str) -> None:
    with pytest.raises(TypeError, match="WeightAveraging has no argument 'evry'"):
        weight_averaging(trainer)(0.9, evry=2)
