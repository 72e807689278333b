"""Ultralytics' ModelEMA and polyak's, side by side on one training run."""

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import ultralytics as ours
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
from tests.shims import torchvision_without_ops

torchvision_without_ops()
theirs = pytest.importorskip("ultralytics.utils.torch_utils")
COUNTER = "num_batches_tracked"  # Ultralytics leaves it where it was


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": 0.9, "tau": 5}, {"decay": 0.99, "tau": 20, "updates": 30}, {"decay": 1.0, "tau": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_it_is_ultralytics_step_by_step(options: dict[str, Any], wrapped: bool) -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    given = nn.DataParallel(model) if wrapped else model
    a, b = theirs.ModelEMA(given, **options), ours.ModelEMA(given, **options)

    def after(step: int) -> None:
        a.update(given)
        b.update(given)
        assert a.updates == b.updates
        assert a.decay(a.updates) == pytest.approx(b.decay(b.updates), abs=1e-12)
        agree(a.ema, b.ema, but=COUNTER)

    train(model, 20, after)
    assert a.decay(0) == b.decay(0) == 0.0
    close(a.ema(torch.ones(2, 3, 8, 8)), b.ema(torch.ones(2, 3, 8, 8)))
    assert not any(p.requires_grad for p in b.ema.parameters())
    public = {name for name in (*dir(a), *vars(a)) if not name.startswith("_")}
    assert public <= {*dir(b), *vars(b)}
    for name in ("__init__", "update", "update_attr"):
        mine, other = (inspect.signature(getattr(of.ModelEMA, name)) for of in (ours, theirs))
        assert [(p.name, p.default) for p in mine.parameters.values()] == [
            (p.name, p.default) for p in other.parameters.values()
        ]


def test_it_can_be_switched_off_and_its_decay_replaced() -> None:
    model = network()
    a, b = theirs.ModelEMA(model), ours.ModelEMA(model)
    for ema in (a, b):
        ema.decay = lambda updates: 0.5
        ema.enabled = False
    before = copy.deepcopy(b.ema)
    train(model, 3, lambda step: (a.update(model), b.update(model)))
    assert b.updates == a.updates == 0
    agree(before, b.ema)
    for ema in (a, b):
        ema.enabled = True
    train(model, 3, lambda step: (a.update(model), b.update(model)))
    agree(a.ema, b.ema, but=COUNTER)


@pytest.mark.parametrize(
    "given", [{}, {"include": ["names", "stride"]}, {"exclude": ("names",)}, {"include": ["training"]}]
)
def test_attributes_are_taken_over_as_by_ultralytics(given: dict[str, Any]) -> None:
    model = network()
    a, b = theirs.ModelEMA(model), ours.ModelEMA(model)
    model.names, model.stride, model._private = {0: "cat"}, 32, 1
    for ema in (a, b):
        ema.update_attr(model, **given)
    for name in ("names", "stride", "_private"):
        assert vars(a.ema).get(name, "none") == vars(b.ema).get(name, "none"), name
    if given.get("include") == ["training"]:
        assert a.ema.training
        assert b.ema.training
    b.enabled, model.names = False, {}
    b.update_attr(model)
    assert vars(b.ema).get("names") != {}


def test_a_teacher_is_left_out() -> None:
    model = network()
    model.add_module("teacher_model", nn.Linear(2, 2))
    for library in (theirs, ours):
        ema = library.ModelEMA(model)
        ema.update(model)
        assert ema.ema.teacher_model is None
    assert isinstance(model.teacher_model, nn.Linear)


def test_either_goes_on_from_the_others_weights() -> None:
    model = network()
    a, b = theirs.ModelEMA(model), ours.ModelEMA(model)
    train(model, 4, lambda step: (a.update(model), b.update(model)))
    fresh_a = theirs.ModelEMA(model, updates=b.updates)
    fresh_b = ours.ModelEMA(model, updates=a.updates)
    fresh_a.ema.load_state_dict(b.ema.state_dict())
    fresh_b.ema.load_state_dict(a.ema.state_dict())
    train(model, 4, lambda step: (fresh_a.update(model), fresh_b.update(model)))
    agree(fresh_a.ema, fresh_b.ema, but=COUNTER)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"beta=1\.5"):
        ours.ModelEMA(network(), decay=1.5)
    with pytest.raises(ConfigError, match="tau=0"):
        ours.ModelEMA(network(), tau=0)


# What is different.


def test_counters_follow_the_model() -> None:
    model = network()
    a, b = theirs.ModelEMA(model), ours.ModelEMA(model)
    train(model, 4, lambda step: (a.update(model), b.update(model)))
    assert int(a.ema[1].num_batches_tracked) == 0
    assert int(b.ema[1].num_batches_tracked) == 4


def test_tied_weights_are_averaged_once() -> None:
    model = Tied()
    a, b = (library.ModelEMA(model, 0.9, tau=1e-9) for library in (theirs, ours))
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    a.update(model)
    b.update(model)
    close(b.ema.embed.weight, before + 0.1)
    close(a.ema.embed.weight, before + 0.19)


def test_updates_follow_tensors_that_moved() -> None:
    model = nn.Linear(2, 1)
    a, b = (library.ModelEMA(model, 0.5, tau=1e-9) for library in (theirs, ours))
    for ema in (a, b):
        ema.update(model)
    for ema in (a, b):
        ema.ema.half().float()
    before = a.ema.weight.clone(), b.ema.weight.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    for ema in (a, b):
        ema.update(model)
    assert torch.equal(a.ema.weight, before[0]), "updates went to memory that nobody reads"
    torch.testing.assert_close(b.ema.weight, before[1] + 0.5, atol=1e-3, rtol=0)


def test_a_float32_average_of_a_bfloat16_model() -> None:
    model = nn.Linear(2, 1).bfloat16()
    a, b = (library.ModelEMA(model, 0.5, tau=1e-9) for library in (theirs, ours))
    for ema in (a, b):
        ema.ema.float()
    before = b.ema.weight.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="dtype"):
        a.update(model)
    b.update(model)
    close(b.ema.weight, (before + model.weight.detach().float()) / 2)


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    averages = [of.ModelEMA(model, decay, tau=1e-9) for of in (theirs, ours)]
    return [Averaging(partial(e.update, model), e.ema) for e in averages]


def test_spectral_vectors_keep_their_length() -> None:
    check_spectral_vectors(begun)


def test_complex_numbers_are_averaged() -> None:
    check_complex_numbers(begun, original=0.0)


def test_a_nan_is_not_for_ever() -> None:
    check_nan(begun)


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)


def test_a_refused_update_does_not_count() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    a, b = theirs.ModelEMA(model), ours.ModelEMA(model)
    with pytest.raises(KeyError):
        a.update(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(PlanError, match=r"1\.weight is missing"):
        b.update(nn.Sequential(nn.Linear(2, 2)))
    assert (a.updates, b.updates) == (1, 0)


def test_the_copy_stays_in_evaluation_mode() -> None:
    model = network()
    a, b = theirs.ModelEMA(model), ours.ModelEMA(model)
    for ema in (a, b):
        ema.update_attr(model)
    assert a.ema.training
    assert not b.ema.training


def test_it_can_be_pickled() -> None:
    model = network()
    b = ours.ModelEMA(model)
    train(model, 3, lambda step: b.update(model))
    twin = pickle.loads(pickle.dumps(b))
    for ema in (b, twin):
        ema.update(model)
    agree(b.ema, twin.ema)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(theirs.ModelEMA(model))
