"""The classes with a shadow, beside what repositories and tutorials write."""

import copy
import gc
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak
from polyak.dropin import simple, yolo
from polyak.errors import ConfigError, PlanError, SwapError
from tests.dropin.side import Averaging, check_nan, check_sixteen_bits, close, network, train


class Original:
    """What is passed on from repository to repository."""

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.decay = decay
        self.shadow = {n: p.data.clone() for n, p in model.named_parameters() if p.requires_grad}
        self.backup: dict[str, Tensor] = {}

    def update(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if p.requires_grad:
                self.shadow[name] = ((1.0 - self.decay) * p.data + self.decay * self.shadow[name]).clone()

    def apply_shadow(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if p.requires_grad:
                self.backup[name] = p.data
                p.data = self.shadow[name]

    def restore(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.data = self.backup[name]
        self.backup = {}


def start() -> nn.Sequential:
    model = network()
    model[0].bias.requires_grad_(False)
    return model


def agree(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        close(a[name], b[name], name)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 1.0])
def test_both_are_the_original_step_by_step(decay: float) -> None:
    model = start()
    a, b, c = Original(model, decay), yolo.ModelEMA(model, decay), simple.EMA(model, decay)

    def after(step: int) -> None:
        a.update(model)
        b.update(model)
        c.update()
        agree(a.shadow, b.shadow)
        agree(a.shadow, c.state_dict())

    train(model, 20, after)
    assert "0.bias" not in b.shadow
    assert yolo.ModelEMA(model).decay == Original(model).decay == 0.9999


def test_the_averages_go_into_the_model_and_out_again() -> None:
    def run(make: Any, swap_in: Any, swap_out: Any) -> list[Tensor]:
        model = start()
        ema = make(model)
        train(model, 5, lambda step: ema.update(*([model] if make is not of_tutorials else [])))
        raw = [p.detach().clone() for p in model.parameters()]
        swap_in(ema, model)
        seen = [p.detach().clone() for p in model.parameters()]
        backup = [t.clone() for t in ema.backup.values()]
        swap_out(ema, model)
        assert ema.backup == {}
        for x, y in zip(raw, model.parameters(), strict=True):
            assert torch.equal(x, y)
        return seen + backup

    def of_tutorials(model: nn.Module) -> Any:
        return simple.EMA(model, 0.9)

    a = run(lambda m: Original(m, 0.9), lambda e, m: e.apply_shadow(m), lambda e, m: e.restore(m))
    b = run(lambda m: yolo.ModelEMA(m, 0.9), lambda e, m: e.apply_shadow(m), lambda e, m: e.restore(m))
    c = run(of_tutorials, lambda e, m: e.apply(), lambda e, m: e.restore())
    for x, y, z in zip(a, b, c, strict=True):
        close(x, y)
        close(x, z)


def test_nothing_is_copied_where_it_need_not_be() -> None:
    model = start()
    ema = simple.EMA(model, 0.9)
    ema.apply()
    assert model[0].weight.data_ptr() == ema.shadow["0.weight"].data_ptr()
    ema.restore()
    model.bfloat16()
    ema.apply()
    assert model[0].weight.dtype == torch.bfloat16
    ema.restore()
    assert ema.shadow["0.weight"].dtype == torch.float32


def test_a_state_is_loaded() -> None:
    model = start()
    ema = simple.EMA(model, 0.9)
    train(model, 3, lambda step: ema.update())
    state = copy.deepcopy(ema.state_dict())
    fresh = simple.EMA(start(), 0.9)
    fresh.load_state_dict(state)
    agree(state, fresh.state_dict())
    other = start()
    other.load_state_dict(state, strict=False)
    agree(state, {n: p.detach() for n, p in other.named_parameters() if p.requires_grad})
    for change, words in (
        ({"0.bias": torch.ones(8)}, r"0\.bias is only on one side"),
        ({"4.bias": torch.ones(5)}, r"4\.bias is \(5,\)"),
    ):
        fresh = simple.EMA(start(), 0.9)
        before = copy.deepcopy(fresh.state_dict())
        with pytest.raises(ConfigError, match=words):
            fresh.load_state_dict(state | change)
        agree(before, fresh.state_dict())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="decay"):
        yolo.ModelEMA(start(), 1.5)
    with pytest.raises(ConfigError, match="beta"):
        simple.EMA(start(), -0.1)
    with pytest.raises(ConfigError, match="nothing to average"):
        simple.EMA(nn.ReLU(), 0.9)


def test_it_and_an_ema_are_never_in_a_model_at_once() -> None:
    model = start()
    own, shadow = polyak.EMA(model, 0.9), simple.EMA(model, 0.9)
    train(model, 2, lambda step: (own.update(), shadow.update()))
    shadow.apply()
    with pytest.raises(SwapError, match="the average of another EMA"):
        own.update()
    with pytest.raises(SwapError, match="already holds"), own.average_parameters():
        pass
    shadow.restore()
    with own.average_parameters(), pytest.raises(SwapError, match="already holds"):
        shadow.apply()
    own.update()


def test_a_copy_goes_in_and_out_on_its_own() -> None:
    model = start()
    shadow = simple.EMA(model, 0.9)
    train(model, 2, lambda step: shadow.update())
    shadow.apply()
    twin = copy.deepcopy(shadow)
    twin.restore()
    twin.apply()
    twin.restore()
    shadow.restore()
    assert torch.equal(twin.model[0].weight, model[0].weight)


def test_one_that_is_gone_claims_nothing() -> None:
    model = start()
    own = polyak.EMA(model, 0.9)
    yolo.ModelEMA(model, 0.9).apply_shadow(model)
    gc.collect()
    own.update()


# What is different.


def test_applied_twice_is_refused_and_the_raw_weights_come_back() -> None:
    for make, refused in ((Original, False), (yolo.ModelEMA, True)):
        model = start()
        ema = make(model, 0.9)
        train(model, 3, lambda step, ema=ema, model=model: ema.update(model))
        raw = model[0].weight.detach().clone()
        ema.apply_shadow(model)
        if refused:
            with pytest.raises(SwapError, match="apply: the model holds the averages"):
                ema.apply_shadow(model)
        else:
            ema.apply_shadow(model)
        ema.restore(model)
        assert torch.equal(model[0].weight, raw) == refused, "the original loses them"


@pytest.mark.parametrize("refused", [False, True])
def test_two_averages_are_never_in_a_model_at_once(refused: bool) -> None:
    model = start()
    make = yolo.ModelEMA if refused else Original
    first, second = make(model, 0.9), make(model, 0.5)
    train(model, 3, lambda step: (first.update(model), second.update(model)))
    raw = model[0].weight.detach().clone()
    first.apply_shadow(model)
    if refused:
        with pytest.raises(SwapError, match=r"0\.weight already holds another average"):
            second.apply_shadow(model)
        assert second.backup == {}
    else:
        second.apply_shadow(model)
    first.restore(model)
    if not refused:
        second.restore(model)
    assert torch.equal(model[0].weight, raw) == refused, "the original loses them"


def test_an_update_of_the_averages_with_themselves_is_refused() -> None:
    model = start()
    ema = simple.EMA(model, 0.9)
    with pytest.raises(SwapError, match="already"):
        ema.restore()
    ema.apply()
    with pytest.raises(SwapError, match="update: the model holds the averages"):
        ema.update()


def test_a_parameter_that_is_unfrozen_joins() -> None:
    model = start()
    a, b = Original(model, 0.9), yolo.ModelEMA(model, 0.9)
    a.update(model)
    b.update(model)
    model[0].bias.requires_grad_(True)
    with pytest.raises(KeyError):
        a.update(model)
    b.update(model)
    close(b.shadow["0.bias"], model[0].bias.detach())
    with torch.no_grad():
        model[0].bias.add_(1.0)
    b.update(model)
    close(b.shadow["0.bias"], model[0].bias.detach() - 0.9)


def test_a_parameter_that_is_frozen_still_goes_in_and_out() -> None:
    model = start()
    a, b = Original(model, 0.9), yolo.ModelEMA(model, 0.9)
    raw = model[4].bias.detach().clone()
    for ema in (a, b):
        ema.apply_shadow(model)
        model[4].bias.requires_grad_(False)
        model[4].bias.data.add_(0.0)
        ema.restore(model)
        lost = model[4].bias.data_ptr() == ema.shadow["4.bias"].data_ptr()
        assert lost == (ema is a), "the original leaves the average in the model"
        model[4].bias.requires_grad_(True)
        model[4].bias.data = raw.clone()


def begun(model: nn.Module, decay: float) -> list[Averaging]:
    averages = Original(model, decay), yolo.ModelEMA(model, decay)
    return [Averaging(partial(e.update, model), e.shadow) for e in averages]


def test_a_nan_is_not_for_ever_and_a_stranger_is_refused() -> None:
    check_nan(begun)
    with pytest.raises(PlanError, match="weight has an average, but is missing"):
        yolo.ModelEMA(nn.Linear(2, 1)).update(nn.ReLU())


def test_sixteen_bits_keep_moving() -> None:
    check_sixteen_bits(begun)
