"""torch_ema's class and polyak's, side by side on one training run."""

import copy
import gc
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from polyak.dropin import torch_ema as ours
from polyak.errors import ConfigError, SwapError
from tests.dropin.side import Averaging, check_nan, check_sixteen_bits, close, network, train

theirs = pytest.importorskip("torch_ema")


def agree(a: Any, b: Any) -> None:
    assert (a.decay, a.num_updates) == (b.decay, b.num_updates)
    for x, y in zip(a.shadow_params, b.shadow_params, strict=True):
        close(x, y)
    assert (a.collected_params is None) == (b.collected_params is None)
    for x, y in zip(a.collected_params or (), b.collected_params or (), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("passed", [True, False])
def test_it_is_torch_emas_step_by_step(decay: float, counted: bool, passed: bool) -> None:
    model = network()
    a = theirs.ExponentialMovingAverage(model.parameters(), decay, counted)
    b = ours.ExponentialMovingAverage(model.parameters(), decay, counted)

    def after(step: int) -> None:
        for ema in (a, b):
            ema.update(model.parameters() if passed else None)
        agree(a, b)

    train(model, 20, after)
    public = {name for name in dir(a) if not name.startswith("_")}
    assert public <= set(dir(b))
    for name in public:
        if callable(getattr(a, name)):
            assert list(inspect.signature(getattr(a, name)).parameters) == list(
                inspect.signature(getattr(b, name)).parameters
            )


def test_frozen_parameters_are_averaged_too() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    a = theirs.ExponentialMovingAverage(model.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    a.update()
    b.update()
    agree(a, b)
    assert not torch.equal(b.shadow_params[0], model[0].weight)


def test_weights_go_in_and_out_of_the_model() -> None:
    def run(library: Any) -> list[torch.Tensor]:
        model = network()
        ema = library.ExponentialMovingAverage(model.parameters(), 0.9)
        train(model, 5, lambda step: ema.update())
        seen: list[torch.Tensor] = []

        def look() -> None:
            seen.extend(p.detach().clone() for p in model.parameters())

        with ema.average_parameters():
            look()
        look()
        with pytest.raises(ZeroDivisionError), ema.average_parameters():
            raise ZeroDivisionError
        look()
        ema.store()
        ema.copy_to()
        look()
        ema.restore()
        look()
        other = network()
        ema.copy_to(other.parameters())
        return seen + list(other.parameters())

    for x, y in zip(run(theirs), run(ours), strict=True):
        close(x, y)


def test_each_loads_the_others_state() -> None:
    model = network()
    a = theirs.ExponentialMovingAverage(model.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    train(model, 3, lambda step: (a.update(), b.update()))
    a.store()
    b.store()
    assert list(a.state_dict()) == list(b.state_dict())
    fresh_a = theirs.ExponentialMovingAverage(model.parameters(), 0.5)
    fresh_b = ours.ExponentialMovingAverage(model.parameters(), 0.5)
    fresh_b.load_state_dict(a.state_dict())
    fresh_a.load_state_dict(b.state_dict())
    agree(fresh_a, fresh_b)
    train(model, 3, lambda step: (fresh_a.update(), fresh_b.update()))
    agree(fresh_a, fresh_b)


def test_to_moves_what_is_kept() -> None:
    model = network()
    a = theirs.ExponentialMovingAverage(model.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    for ema in (a, b):
        ema.store()
        ema.to(dtype=torch.float64)
    agree(a, b)
    train(model, 3, lambda step: (a.update(), b.update()))
    agree(a, b)
    assert b.shadow_params[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decay", 1.5),
        ("num_updates", "3"),
        ("shadow_params", ()),
        ("shadow_params", []),
        ("collected_params", [torch.ones(1)]),
    ],
)
def test_a_bad_state_is_refused_by_both_and_changes_nothing(key: str, value: object) -> None:
    model = network()
    a = theirs.ExponentialMovingAverage(model.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    with pytest.raises((ValueError, AssertionError)):
        a.load_state_dict(a.state_dict() | {key: value})
    before = copy.deepcopy(b.state_dict())
    with pytest.raises(ConfigError, match=key):
        b.load_state_dict(b.state_dict() | {key: value})
    assert str(before) == str(b.state_dict())


def test_wrong_calls_are_refused_by_both() -> None:
    model = network()
    for library in (theirs, ours):
        with pytest.raises(ValueError):
            library.ExponentialMovingAverage(model.parameters(), 1.1)
        ema = library.ExponentialMovingAverage(model.parameters(), 0.9)
        with pytest.raises(RuntimeError):
            ema.restore()
        with pytest.raises(ValueError):
            ema.update(list(model.parameters())[1:])
        gone = library.ExponentialMovingAverage(network().parameters(), 0.9)
        gc.collect()
        with pytest.raises(ValueError):
            gone.update()


# What is different.


def test_a_state_taken_inside_the_block_holds_no_backup() -> None:
    model = nn.Linear(2, 1)
    a = theirs.ExponentialMovingAverage(model.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    with a.average_parameters():
        assert a.state_dict()["collected_params"] is not None
    with b.average_parameters():
        assert b.state_dict()["collected_params"] is None


def test_a_nested_block_is_refused_and_the_raw_weights_come_back() -> None:
    def run(library: Any) -> bool:
        model = nn.Linear(2, 1)
        ema = library.ExponentialMovingAverage(model.parameters(), 0.9)
        with torch.no_grad():
            model.weight.add_(1.0)
        raw = model.weight.detach().clone()
        try:
            with ema.average_parameters(), ema.average_parameters():
                pass
        except SwapError:
            assert library is ours
        return torch.equal(model.weight, raw)

    assert not run(theirs), "torch_ema loses the raw weights"
    assert run(ours)


def test_the_block_copies_nothing() -> None:
    model = nn.Linear(2, 1)
    ema = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    with ema.average_parameters():
        assert model.weight.data_ptr() == ema.shadow_params[0].data_ptr()


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    averages = [
        of.ExponentialMovingAverage(model.parameters(), decay, use_num_updates=False) for of in (theirs, ours)
    ]
    return [Averaging(e.update, e.shadow_params) for e in averages]


def test_a_nan_is_not_for_ever() -> None:
    check_nan(begun)


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)


def test_a_float32_average_of_a_bfloat16_model_survives_a_resume() -> None:
    model = nn.Linear(8, 8).bfloat16()

    def resumed(library: Any) -> torch.Tensor:
        ema = library.ExponentialMovingAverage(model.parameters(), 0.9)
        ema.to(dtype=torch.float32)
        ema.shadow_params[0].fill_(1 / 3)
        fresh = library.ExponentialMovingAverage(model.parameters(), 0.9)
        fresh.load_state_dict(ema.state_dict())
        return fresh.shadow_params[0]

    assert resumed(theirs).dtype == torch.bfloat16
    assert bool((resumed(ours) == torch.tensor(1 / 3)).all())


def test_wrong_shapes_are_refused_when_loaded() -> None:
    small, large = nn.Linear(2, 1), nn.Linear(3, 1)
    a = theirs.ExponentialMovingAverage(small.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(small.parameters(), 0.9)
    foreign = theirs.ExponentialMovingAverage(large.parameters(), 0.9).state_dict()
    a.load_state_dict(foreign)
    with pytest.raises(RuntimeError):
        a.update()
    with pytest.raises(ConfigError, match=r"shadow_params\[0\] is \(1, 3\)"):
        b.load_state_dict(foreign)


def test_stored_weights_survive_a_resume() -> None:
    model = nn.Linear(2, 1)
    a = theirs.ExponentialMovingAverage(model.parameters(), 0.9)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    a.store()
    b.store()
    with pytest.raises(RuntimeError, match="deepcopy"):
        a.load_state_dict(a.state_dict())
    b.load_state_dict(a.state_dict())
    b.restore()


def test_a_frozen_whole_number_is_copied() -> None:
    model = nn.Linear(2, 1)
    model.table = nn.Parameter(torch.arange(3), requires_grad=False)
    b = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    model.table.data.add_(5)
    b.update()
    assert torch.equal(b.shadow_params[2], torch.arange(3) + 5)


def test_it_can_be_deep_copied_in_mid_run() -> None:
    model = network()
    ema = ours.ExponentialMovingAverage(model.parameters(), 0.9)
    train(model, 3, lambda step: ema.update())
    twin = copy.deepcopy(ema)
    before = [t.clone() for t in twin.shadow_params]
    train(model, 3, lambda step: ema.update())
    for x, y in zip(before, twin.shadow_params, strict=True):
        assert torch.equal(x, y)
