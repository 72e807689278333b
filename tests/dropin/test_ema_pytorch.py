"""ema-pytorch's EMA and polyak's, side by side on one training run."""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import ema_pytorch as ours
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

theirs = pytest.importorskip("ema_pytorch")
COUNTER = "num_batches_tracked"  # ema-pytorch leaves it where it was
NOW: dict[str, Any] = {"update_after_step": 0, "update_every": 1}

OPTIONS: list[dict[str, Any]] = [
    {},
    NOW,
    {"update_after_step": 7, "update_every": 3},
    {"beta": 0.9, **NOW},
    {"beta": 0.9, "inv_gamma": 5.0, "power": 0.8, "min_value": 0.3, **NOW},
    {"beta": 0.5, "min_value": 0.7, **NOW},
    {"beta": 1.0, **NOW},
    {"beta": 0.0, **NOW},
    {"param_or_buffer_names_no_ema": {"0.weight", "1.running_mean"}, **NOW},
    {"ignore_names": {"0.weight", "1.running_var"}, **NOW},
    {"ignore_startswith_names": {"1.", "4"}, **NOW},
    {"use_foreach": True, "allow_different_devices": True, "coerce_dtype": True, **NOW},
    {"include_online_model": False, **NOW},
    {"move_ema_to_online_device": True, **NOW},
    {"lazy_init_ema": True, **NOW},
    {"forward_method_names": ("forward",), **NOW},
]
TOWARDS: list[dict[str, Any]] = [
    {"update_model_with_ema_every": 4, **NOW},
    {"update_model_with_ema_every": 3, "update_model_with_ema_beta": 0.6, **NOW},
    {"update_model_with_ema_every": 2, "update_model_with_ema_beta": 0.6, "ignore_names": {"4.bias"}, **NOW},
]


@pytest.mark.parametrize("options", OPTIONS, ids=", ".join)
def test_it_is_ema_pytorchs_step_by_step(options: dict[str, Any]) -> None:
    model = network()
    a, b = theirs.EMA(model, **options), ours.EMA(model, **options)

    def after(step: int) -> None:
        a.update()
        b.update()
        assert a.get_current_decay() == pytest.approx(b.get_current_decay(), abs=1e-7)
        agree(a, b, but=COUNTER)
        assert int(a.step) == int(b.step)

    train(model, 25, after)
    x = torch.randn(2, 3, 8, 8)
    close(a.eval()(x), b.eval()(x))
    hidden = {"inplace_copy", "inplace_lerp"}  # its own helpers
    assert {k for k in dir(a) if not k.startswith("_")} - hidden <= set(dir(b))
    for k in vars(a):
        if type(vars(a)[k]) in (int, float, bool, tuple, str, set, type(None)):
            assert getattr(b, k) == getattr(a, k), k
    a.copy_params_from_model_to_ema()
    b.copy_params_from_model_to_ema()
    agree(a, b, but=COUNTER)


@pytest.mark.parametrize("options", TOWARDS, ids=", ".join)
def test_the_model_is_moved_towards_its_average_as_by_ema_pytorch(options: dict[str, Any]) -> None:
    def run(library: Any) -> nn.Module:
        model = network()
        ema = library.EMA(model, beta=0.9, **options)
        train(model, 20, lambda step: ema.update())
        return ema

    agree(run(theirs), run(ours), but=COUNTER)
    a, b = run(theirs), run(ours)
    a.copy_params_from_ema_to_model()
    b.copy_params_from_ema_to_model()
    agree(a, b, but=COUNTER)
    assert all(p.requires_grad for p in b.model.parameters())


def test_the_parameters_are_ema_pytorchs() -> None:
    a, b = (inspect.signature(library.EMA.__init__).parameters for library in (theirs, ours))
    assert list(a) == list(b)
    for name in a:
        given, mine = a[name].default, b[name].default
        assert given == mine or (given == set() and not mine), name


@pytest.mark.parametrize("given", [network, network()])
def test_a_module_for_the_averages_can_be_given(given: Any) -> None:
    model = network()
    a, b = (library.EMA(model, copy.deepcopy(given), **NOW) for library in (theirs, ours))
    train(model, 5, lambda step: (a.update(), b.update()))
    agree(a, b, but=COUNTER)


def test_each_loads_the_others_state() -> None:
    model = network()
    a, b = theirs.EMA(model, **NOW), ours.EMA(model, **NOW)
    train(model, 4, lambda step: (a.update(), b.update()))
    fresh_a, fresh_b = theirs.EMA(network(), **NOW), ours.EMA(network(), **NOW)
    fresh_b.update()
    fresh_a.load_state_dict(b.state_dict())
    fresh_b.load_state_dict(a.state_dict())
    for fresh in (fresh_a, fresh_b):
        train(fresh.model, 3, lambda step, fresh=fresh: fresh.update())
    agree(fresh_a, fresh_b, but=COUNTER)
    assert int(fresh_b.step) == 7


def test_it_follows_an_optimizer() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = ours.EMA(model, **NOW)
    handle = ema.add_to_optimizer_post_step_hook(optimizer)
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert int(ema.step) == 1


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="dict"):
        ours.EMA({"w": torch.ones(1)})
    with pytest.raises(ConfigError, match="one string"):
        ours.EMA(network(), param_or_buffer_names_no_ema="0.weight")
    with pytest.raises(ConfigError, match="beta"):
        ours.EMA(network(), beta=1.5)
    with pytest.raises(ConfigError, match="lazy"):
        ours.EMA(network(), network(), lazy_init_ema=True)
    with pytest.raises(ConfigError, match="before the first update"):
        ours.EMA(network(), lazy_init_ema=True)(torch.ones(1, 3, 8, 8))


# What is different.


def test_counters_follow_the_model() -> None:
    model = network()
    a, b = theirs.EMA(model, **NOW), ours.EMA(model, **NOW)
    train(model, 4, lambda step: (a.update(), b.update()))
    assert int(a.ema_model[1].num_batches_tracked) == 0
    assert int(b.ema_model[1].num_batches_tracked) == 4


def test_a_compiled_models_average_moves() -> None:
    model = nn.Linear(2, 1)
    emas = theirs.EMA(model, **NOW), ours.EMA(model, ignore_names={"bias"}, **NOW)
    compiled = torch.compile(model, backend="eager")
    for ema in emas:
        ema.online_model = compiled
        ema.update()
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    for ema in emas:
        ema.update()
        ema.update()
    assert torch.equal(emas[0].ema_model.weight, before), "no name matches _orig_mod.weight"
    assert not torch.equal(emas[1].ema_model.weight, before)


def test_a_float32_average_of_a_bfloat16_model() -> None:
    model = nn.Linear(2, 1).bfloat16()
    a = theirs.EMA(model, copy.deepcopy(model).float(), beta=0.9, **NOW)
    b = ours.EMA(model, copy.deepcopy(model).float(), beta=0.9, **NOW)
    a.update()
    b.update()
    with pytest.raises(RuntimeError, match="dtype"):
        [a.update() for _ in range(3)]
    [b.update() for _ in range(3)]
    close(b.ema_model.weight, model.weight.detach().float())


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    averages = [of.EMA(model, beta=decay, min_value=decay, **NOW) for of in (theirs, ours)]
    for e in averages:
        e.update()
        e.update()  # both are copies
    return [Averaging(e.update, e.ema_model) for e in averages]


def test_spectral_vectors_keep_their_length() -> None:
    check_spectral_vectors(begun)


def test_a_nan_is_not_for_ever() -> None:
    check_nan(begun)


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)


def test_forward_eval_is_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(50))
    model[1].eval()
    a, b = theirs.EMA(model), ours.EMA(model)
    x = torch.randn(4, 50)
    assert not torch.equal(a.forward_eval(x), a.forward_eval(x)), "dropout is on"
    close(b.forward_eval(x), x / (1 + 1e-5) ** 0.5)
    assert b.ema_model[0].training
    assert not b.ema_model[1].training


def test_a_stranger_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    a, b = theirs.EMA(model, **NOW), ours.EMA(model, **NOW)
    for ema in (a, b):
        ema.online_model = nn.Sequential(nn.Linear(2, 2))
    a.update()
    with pytest.raises(PlanError, match=r"1\.weight is missing"):
        b.update()


def test_what_cannot_be_copied_raises_instead_of_ending_the_program() -> None:
    model = nn.Linear(2, 1)
    model.lock = (x for x in ())
    with pytest.raises(SystemExit):
        theirs.EMA(model)
    with pytest.raises(TypeError, match="pickle"):
        ours.EMA(model)


def test_tied_weights_are_ignored_under_either_name() -> None:
    b = ours.EMA(model := Tied(), beta=0.5, ignore_names={"head.weight"}, **NOW)
    b.update()
    before = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    b.update()
    b.update()
    assert torch.equal(b.ema_model.embed.weight, before)


def test_an_update_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    a, b = theirs.EMA(model, **NOW), ours.EMA(model, **NOW)
    a.update()
    b.update()
    asked: list[str] = []
    of = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda t: (asked.append("item"), of(t))[1])
    b.update()
    assert not asked
    a.update()
    assert asked


def test_it_can_be_copied_in_mid_run() -> None:
    model = network()
    b = ours.EMA(model, **NOW)
    train(model, 3, lambda step: b.update())
    twin = copy.deepcopy(b)
    for ema in (b, twin):
        with torch.no_grad():
            ema.model[0].weight.add_(1.0)
        ema.update()
    agree(b, twin)
    assert twin.model is not model
