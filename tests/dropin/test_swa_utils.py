"""torch.optim.swa_utils and polyak's, side by side on one training run."""

import copy
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils as theirs

from polyak.dropin import swa_utils as ours
from polyak.errors import ConfigError, PlanError
from tests.dropin.side import (
    Averaging,
    Tied,
    agree,
    check_nan,
    check_sixteen_bits,
    check_spectral_vectors,
    close,
    network,
    train,
)


def keep_nine_tenths(average: Tensor, live: Tensor, averaged: Any) -> Tensor:
    assert isinstance(averaged, Tensor)
    return 0.9 * average + 0.1 * live


def slower_and_slower(averages: Any, lives: Any, averaged: Any) -> None:
    assert isinstance(averages, list)
    torch._foreach_lerp_(averages, lives, 1 / float(averaged + 5))


OPTIONS: list[Any] = [
    lambda library: {},
    lambda library: {"avg_fn": library.get_ema_avg_fn(0.9)},
    lambda library: {"avg_fn": library.get_swa_avg_fn()},
    lambda library: {"multi_avg_fn": library.get_ema_multi_avg_fn(0.9)},
    lambda library: {"multi_avg_fn": library.get_ema_multi_avg_fn()},
    lambda library: {"multi_avg_fn": library.get_swa_multi_avg_fn()},
    lambda library: {"avg_fn": keep_nine_tenths},
    lambda library: {"multi_avg_fn": slower_and_slower},
    lambda library: {"multi_avg_fn": theirs.get_ema_multi_avg_fn(0.9)},
    lambda library: {"avg_fn": lambda a, b, n: torch.minimum(a, b), "device": "cpu"},
]


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_torchs_step_by_step(options: Any, use_buffers: bool) -> None:
    model = network()
    model.register_buffer("table", torch.zeros(3), persistent=False)
    if use_buffers:
        model[1].num_batches_tracked = None  # torch's own functions cut whole numbers off or fail on them
    a = theirs.AveragedModel(model, use_buffers=use_buffers, **options(theirs))
    b = ours.AveragedModel(model, use_buffers=use_buffers, **options(ours))

    def after(step: int) -> None:
        model.table.add_(1.0)
        a.update_parameters(model)
        b.update_parameters(model)
        agree(a, b)
        close(a.module.table, b.module.table)

    train(model, 20, after)
    x = torch.randn(2, 3, 8, 8)
    close(a(x), b(x))
    assert {k for k in dir(a) if not k.startswith("_")} <= set(dir(b))


@pytest.mark.parametrize("name", theirs.__all__)
def test_every_name_is_there_with_its_parameters(name: str) -> None:
    mine, other = getattr(ours, name), getattr(theirs, name)
    assert list(inspect.signature(mine).parameters) == list(inspect.signature(other).parameters)
    assert name in ours.__all__


@pytest.mark.parametrize("averaged", [0, 3, torch.tensor(7)])
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_functions_alone_are_torchs(kind: str, averaged: Any) -> None:
    averages, lives = [torch.rand(5), torch.rand(2, 2)], [torch.rand(5), torch.rand(2, 2)]
    one, several = f"get_{kind}_avg_fn", f"get_{kind}_multi_avg_fn"
    for average, live in zip(averages, lives, strict=True):
        kept = average.clone()
        made = getattr(ours, one)()(average, live, averaged)
        close(made, getattr(theirs, one)()(average, live, averaged))
        assert torch.equal(kept, average), "the average given is left alone"
    others = [average.clone() for average in averages]
    getattr(ours, several)()(averages, lives, averaged)
    getattr(theirs, several)()(others, lives, averaged)
    for x, y in zip(averages, others, strict=True):
        close(x, y)


def test_polyaks_functions_work_in_torchs_class_and_the_other_way_round() -> None:
    model = network()
    a = theirs.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.9))
    b = ours.AveragedModel(model, multi_avg_fn=theirs.get_ema_multi_avg_fn(0.9))
    train(model, 5, lambda step: (a.update_parameters(model), b.update_parameters(model)))
    agree(a, b)


def test_each_loads_the_others_state() -> None:
    model = network()
    a, b = theirs.AveragedModel(model), ours.AveragedModel(model)
    train(model, 4, lambda step: (a.update_parameters(model), b.update_parameters(model)))
    fresh_a, fresh_b = theirs.AveragedModel(network()), ours.AveragedModel(network())
    fresh_b.update_parameters(model)  # the counter it knows is another than the one it loads
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(a.state_dict())
    train(model, 3, lambda step: (fresh_a.update_parameters(model), fresh_b.update_parameters(model)))
    agree(fresh_a, fresh_b)
    assert int(fresh_b.n_averaged) == 7


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(5)]


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x, 0), lambda x: [x]])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_update_bn_is_torchs(form: Any, device: Any) -> None:
    a, b = network(), network()
    b.eval()
    theirs.update_bn(map(form, batches()), a, device)
    ours.update_bn(map(form, batches()), b, device)
    agree(a, b)
    assert a.training
    assert not b.training
    assert b[1].momentum == 0.1


def test_wrong_calls_are_refused_by_both() -> None:
    functions = {"avg_fn": keep_nine_tenths, "multi_avg_fn": slower_and_slower}
    with pytest.raises(AssertionError):
        theirs.AveragedModel(network(), **functions)
    with pytest.raises(ConfigError, match="at most one"):
        ours.AveragedModel(network(), **functions)
    for library in (theirs, ours):
        for make in (library.get_ema_avg_fn, library.get_ema_multi_avg_fn):
            with pytest.raises(ValueError, match="decay"):
                make(1.1)


# What is different.


@pytest.mark.parametrize("of", [ours.get_ema_multi_avg_fn, theirs.get_ema_multi_avg_fn])
def test_whole_numbers_are_copied(of: Any) -> None:
    model = nn.Linear(2, 1)
    model.register_buffer("mask", torch.tensor([1, 1]))
    a = theirs.AveragedModel(model, multi_avg_fn=theirs.get_ema_multi_avg_fn(0.9), use_buffers=True)
    b = ours.AveragedModel(model, multi_avg_fn=of(0.9), use_buffers=True)
    for averaged in (a, b):
        averaged.update_parameters(model)
    model.mask.fill_(2)
    for averaged in (a, b):
        averaged.update_parameters(model)
    assert a.module.mask.tolist() == [1, 1], "1.1, cut off"
    assert b.module.mask.tolist() == [2, 2]


def test_a_float32_average_of_a_bfloat16_model() -> None:
    model = nn.Linear(2, 1).bfloat16()
    a = theirs.AveragedModel(model, multi_avg_fn=theirs.get_ema_multi_avg_fn(0.9))
    b = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.9))
    for averaged in (a, b):
        averaged.float()
        averaged.update_parameters(model)
    before = b.module.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="expected dtype"):
        a.update_parameters(model)
    b.update_parameters(model)
    close(b.module.weight, before + 0.1 * (model.weight.float() - before))


def test_a_layer_added_to_the_model_shifts_no_pair() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    a, b = theirs.AveragedModel(model), ours.AveragedModel(model)
    grown = nn.Sequential()
    grown.add_module("extra", nn.Linear(2, 2))
    for name, child in model.named_children():
        grown.add_module(name, child)
    a.update_parameters(grown)
    assert torch.equal(a.module[0].weight, grown.extra.weight), "torch pairs by position"
    with pytest.raises(PlanError, match=r"extra\.weight was added to the model after the average was made"):
        b.update_parameters(grown)
    b.update_parameters(model)
    assert torch.equal(b.module[0].weight, model[0].weight)
    with pytest.raises(PlanError, match=r"1\.weight is missing"):
        b.update_parameters(nn.Sequential(nn.Linear(2, 2)))
    assert int(b.n_averaged) == 1, "a refused update does not count"


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    return averaging(model, lambda of: of.get_ema_multi_avg_fn(decay))


def mean(model: nn.Module, decay: float) -> list[Averaging]:
    return averaging(model, lambda of: None)


def averaging(model: nn.Module, rule: Callable[[Any], Any]) -> list[Averaging]:
    averages = [of.AveragedModel(model, multi_avg_fn=rule(of), use_buffers=True) for of in (theirs, ours)]
    for e in averages:
        e.update_parameters(model)  # a copy
    return [Averaging(partial(e.update_parameters, model), e.module) for e in averages]


def test_a_nan_is_not_for_ever() -> None:
    check_nan(begun)
    check_nan(mean)


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)


def test_spectral_vectors_keep_their_length() -> None:
    check_spectral_vectors(begun)
    check_spectral_vectors(mean)


def test_tied_weights_are_averaged_once() -> None:
    model = Tied()
    b = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.9))
    b.update_parameters(model)
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    b.update_parameters(model)
    close(b.module.head.weight.detach(), before + 0.1)


def test_an_update_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    a, b = theirs.AveragedModel(model), ours.AveragedModel(model)
    for averaged in (a, b):
        averaged.update_parameters(model)
    asked: list[str] = []
    for name in ("item", "__bool__", "__int__", "__float__"):
        of = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda t, of=of, name=name: (asked.append(name), of(t))[1])
    b.update_parameters(model)
    assert not asked
    a.update_parameters(model)
    assert asked


def test_update_bn_measures_as_evaluation_will_see_it() -> None:
    def measured(library: Any, training: bool) -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Dropout(0.5))
        model.train(training)
        model[2].eval()
        library.update_bn([torch.ones(64, 2)], model)
        return model

    assert float(measured(theirs, True)[1].running_var.min()) > 0.5, "dropout was on"
    assert float(measured(ours, True)[1].running_var.max()) == 0.0
    assert measured(theirs, True)[2].training, "torch trains what was frozen"
    assert not measured(ours, True)[2].training


def test_update_bn_on_nothing_changes_nothing() -> None:
    a, b = network(), network()
    used = iter(batches())
    theirs.update_bn(used, a)
    theirs.update_bn(used, a)
    assert a[1].running_mean.tolist() == [0.0] * 8, "a loader used up: torch leaves no statistics"
    used = iter(batches())
    ours.update_bn(used, b)
    before = b[1].running_mean.clone()
    with pytest.raises(ConfigError, match="no batch"):
        ours.update_bn(used, b)
    assert torch.equal(b[1].running_mean, before)


def test_it_can_be_copied_and_pickled_in_mid_run() -> None:
    model = network()
    b = ours.AveragedModel(model, multi_avg_fn=ours.get_ema_multi_avg_fn(0.9))
    train(model, 3, lambda step: b.update_parameters(model))
    twins = [copy.deepcopy(b), pickle.loads(pickle.dumps(b))]
    for step in range(2):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        for averaged in (b, *twins):
            averaged.update_parameters(model)
        for twin in twins:
            agree(b, twin)
            assert int(twin.n_averaged) == 4 + step
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(theirs.AveragedModel(model, multi_avg_fn=theirs.get_ema_multi_avg_fn(0.9)))
