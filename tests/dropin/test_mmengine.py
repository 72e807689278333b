"""mmengine's averaged models and polyak's: beside its documented formulas, and beside it where installed."""

import copy
import inspect
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak.dropin import mmengine as ours
from polyak.errors import ConfigError, PlanError
from tests.dropin.side import (
    Averaging,
    Tied,
    agree,
    check_complex_numbers,
    check_nan,
    check_sixteen_bits,
    check_spectral_vectors,
    close,
    network,
    train,
)

CASES: list[tuple[str, dict[str, Any]]] = [
    (name, options | extra)
    for name, options in [
        ("StochasticWeightAverage", {}),
        ("ExponentialMovingAverage", {}),
        ("ExponentialMovingAverage", {"momentum": 0.3}),
        ("MomentumAnnealingEMA", {}),
        ("MomentumAnnealingEMA", {"momentum": 0.1, "gamma": 20}),
    ]
    for extra in ({}, {"interval": 3}, {"update_buffers": True}, {"update_buffers": True, "interval": 4})
]
WEIGHTS = {  # of the newest parameters, as mmengine documents it
    "StochasticWeightAverage": lambda o, t: 1 / (t // o.get("interval", 1) + 1),
    "ExponentialMovingAverage": lambda o, t: o.get("momentum", 0.0002),
    "MomentumAnnealingEMA": lambda o, t: max(
        o.get("momentum", 0.0002), o.get("gamma", 100) / (o.get("gamma", 100) + t)
    ),
}


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_it_follows_the_documented_formulas(name: str, options: dict[str, Any]) -> None:
    model = network()
    averaged = getattr(ours, name)(model, **options)
    expected = {k: t.detach().clone() for k, t in model.state_dict().items()}

    def after(step: int) -> None:
        averaged.update_parameters(model)
        t = step - 1
        for key, live in model.state_dict().items():
            buffer = "1.running" in key or "num_batches" in key
            if t == 0 or (buffer and not options.get("update_buffers")):
                expected[key].copy_(live)
            elif t % options.get("interval", 1) == 0:
                if expected[key].is_floating_point():
                    expected[key].lerp_(live, WEIGHTS[name](options, t))
                else:
                    expected[key].copy_(live)
        for key, tensor in averaged.module.state_dict().items():
            close(tensor, expected[key], key)

    train(model, 20, after)
    assert int(averaged.steps) == 20
    assert list(averaged.state_dict()) == ["steps", *(f"module.{key}" for key in expected)]


def original() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("mmengine.model")


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_it_is_mmengines_step_by_step(name: str, options: dict[str, Any]) -> None:
    theirs = original()
    model = network()
    model.register_buffer("table", torch.zeros(3), persistent=False)
    a, b = getattr(theirs, name)(model, **options), getattr(ours, name)(model, **options)
    but = "num_batches_tracked" if options.get("update_buffers") else "\n"

    def after(step: int) -> None:
        model.table.add_(1.0)
        a.update_parameters(model)
        b.update_parameters(model)
        agree(a, b, but)
        close(a.module.table, b.module.table)

    train(model, 20, after)
    assert {k for k in dir(a) if not k.startswith("_")} <= set(dir(b))
    assert list(a.avg_parameters) == list(b.avg_parameters)
    mine, other = (inspect.signature(getattr(of, name)).parameters for of in (ours, theirs))
    assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in other.values()]
    for average in (a, b):  # one tensor alone
        average.probe = torch.ones(3)
        average.avg_func(average.probe, torch.zeros(3), average.steps)
    close(a.probe, b.probe)
    fresh_a, fresh_b = (getattr(of, name)(copy.deepcopy(model), **options) for of in (theirs, ours))
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(a.state_dict())
    train(model, 3, lambda step: (fresh_a.update_parameters(model), fresh_b.update_parameters(model)))
    agree(fresh_a, fresh_b, but)


class Halfway(ours.BaseAveragedModel):
    """Somebody's own rule."""

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: Any) -> None:
        assert isinstance(steps, Tensor)
        averaged_param.add_(source_param).div_(2)


class Faster(ours.ExponentialMovingAverage):
    """Somebody's own rule over one of ours."""

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: Any) -> None:
        averaged_param.lerp_(source_param, 0.5)


@pytest.mark.parametrize("of", [Halfway, Faster])
def test_a_rule_of_ones_own_is_followed(of: Any) -> None:
    model = network()
    averaged, expected = of(model), ours.ExponentialMovingAverage(model, 0.5)
    train(model, 5, lambda s: (averaged.update_parameters(model), expected.update_parameters(model)))
    agree(averaged, expected)


def test_a_state_is_continued() -> None:
    model = network()
    a = ours.MomentumAnnealingEMA(model, gamma=3)
    train(model, 4, lambda step: a.update_parameters(model))
    fresh = ours.MomentumAnnealingEMA(network(), gamma=3)
    fresh.update_parameters(model)
    fresh.load_state_dict(a.state_dict())
    twin = copy.deepcopy(a)
    train(model, 3, lambda step: [each.update_parameters(model) for each in (a, fresh, twin)])
    agree(a, fresh)
    agree(a, twin)


@pytest.mark.parametrize("wrong", [{"momentum": 3}, {"gamma": -1}], ids=str)
def test_what_the_original_asserts_can_be_caught_as_an_assertion(wrong: dict[str, Any]) -> None:
    for library in (original(), ours):
        with pytest.raises(AssertionError, match=next(iter(wrong))):
            library.MomentumAnnealingEMA(network(), **wrong)


def test_wrong_arguments_are_refused() -> None:
    for momentum in (0.0, 1.0, 1.5):
        with pytest.raises(ConfigError, match="momentum must be in range"):
            ours.ExponentialMovingAverage(network(), momentum)
    with pytest.raises(ConfigError, match="gamma must be greater than 0: 0 is not"):
        ours.MomentumAnnealingEMA(network(), gamma=0)
    with pytest.raises(ConfigError, match="interval"):
        ours.StochasticWeightAverage(network(), interval=0)


@pytest.mark.parametrize("kind", ["ExponentialMovingAverage", "MomentumAnnealingEMA"])
def test_a_decay_given_as_momentum_is_warned_of_where_it_was_given(kind: str) -> None:
    with pytest.warns(UserWarning, match=r"momentum=0\.9999 ") as told:
        getattr(ours, kind)(network(), 0.9999)
    assert [warning.filename for warning in told] == [__file__]


# What is different.


def test_the_abstract_class_refuses_construction() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ours.BaseAveragedModel(network())


def test_counters_follow_the_model() -> None:
    model = network()
    averaged = ours.ExponentialMovingAverage(model, update_buffers=True)
    train(model, 4, lambda step: averaged.update_parameters(model))
    assert int(averaged.module[1].num_batches_tracked) == 4


def test_updates_follow_tensors_that_moved() -> None:
    model = nn.Linear(2, 1)
    averaged = ours.ExponentialMovingAverage(model, 0.5, update_buffers=True)
    averaged.update_parameters(model)
    averaged.double()
    before = averaged.module.weight.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.weight, before + 0.5)
    assert averaged.avg_parameters["weight"].data_ptr() == averaged.module.weight.data_ptr()


def test_tied_weights_are_averaged_once() -> None:
    model = Tied()
    averaged = ours.ExponentialMovingAverage(model, 0.1, update_buffers=True)
    averaged.update_parameters(model)
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    averaged.update_parameters(model)
    close(averaged.module.embed.weight, before + 0.1)


def test_a_float32_average_of_a_bfloat16_model() -> None:
    model = nn.Linear(2, 1).bfloat16()
    averaged = ours.ExponentialMovingAverage(model, 0.5).float()
    averaged.update_parameters(model)
    before = model.weight.detach().float().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    averaged.update_parameters(model)
    close(averaged.module.weight, (before + model.weight.detach().float()) / 2)


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    averages = [
        of.ExponentialMovingAverage(model, 1 - decay, update_buffers=True) for of in (original(), ours)
    ]
    for e in averages:
        e.update_parameters(model)  # a copy
    return [Averaging(partial(e.update_parameters, model), e.module) for e in averages]


def test_spectral_vectors_keep_their_length() -> None:
    check_spectral_vectors(begun)


def test_complex_numbers_are_averaged() -> None:
    check_complex_numbers(begun, original=0.0)


def test_a_nan_is_not_for_ever_and_a_stranger_is_refused() -> None:
    check_nan(begun)
    averaged = ours.ExponentialMovingAverage(model := nn.Linear(2, 1))
    averaged.update_parameters(model)
    with pytest.raises(PlanError, match="weight is missing"):
        averaged.update_parameters(nn.ReLU())
    assert int(averaged.steps) == 1


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)


def test_an_update_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    averaged = ours.ExponentialMovingAverage(model)
    averaged.update_parameters(model)
    for name in ("item", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(Tensor, name, lambda t: pytest.fail("asked"))
    averaged.update_parameters(model)


def test_the_originals_defects_are_real() -> None:
    theirs = original()
    model = network()
    a = theirs.ExponentialMovingAverage(model, 0.5, update_buffers=True)
    train(model, 4, lambda step: a.update_parameters(model))
    assert int(a.module[1].num_batches_tracked) < 4
    a.double()
    before = a.module[0].weight.clone()
    a.update_parameters(model)
    assert torch.equal(a.module[0].weight, before), "updates go to memory that nobody reads"
    theirs.BaseAveragedModel(model)  # abstract, yet made
    half = nn.Linear(2, 1).bfloat16()
    b = theirs.ExponentialMovingAverage(half, 0.5).float()
    b.avg_parameters = dict(b.module.named_parameters())
    b.update_parameters(half)
    with pytest.raises(RuntimeError, match="dtype"):
        b.update_parameters(half)
