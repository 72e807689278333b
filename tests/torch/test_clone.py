"""``ema.module`` is nobody's way to the live model: own memory, own functions, or refused by name."""

from __future__ import annotations

import copy
import functools
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak import EMA, PlanError
from tests.shims import torchvision_without_ops

X = torch.ones(1, 2)


# --- memory ----------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """All roles a tensor can have: averaged, frozen, copied, not persistent, a plain attribute."""

    def __init__(self, *, bias: float = 0.0) -> None:
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.full((2,), bias))
        self.register_buffer("cache", torch.full((2,), bias), persistent=False)
        self.plain = torch.full((2,), bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.frozen(self.trained(x))) + self.table + self.cache + self.plain


def tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), model.plain]


SELECTIONS: list[dict[str, Any]] = [
    {},
    {"buffers": "ignore"},
    {"exclude": "frozen.*"},
    {"include": "trained.*"},
]


@pytest.mark.parametrize("options", SELECTIONS)
def test_no_write_to_the_module_reaches_the_model(options: dict[str, Any]) -> None:
    model = Everything()
    ema = EMA(model, 0.5, **options)
    before = [tensor.detach().clone() for tensor in tensors(model)]
    with torch.no_grad():
        for tensor in tensors(ema.module):
            tensor.data.add_(1)
    ema.module.load_state_dict(Everything(bias=3.0).state_dict())
    assert all(torch.equal(now, then) for now, then in zip(tensors(model), before, strict=True))


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda tensor: tensor.add_(1),
    "through .data, which counts no version": lambda tensor: tensor.data.add_(1),
    "pointed elsewhere": lambda tensor: setattr(tensor, "data", tensor.data + 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("options", SELECTIONS)
def test_what_is_not_averaged_follows_the_model(
    options: dict[str, Any], write: Callable[[Tensor], object]
) -> None:
    model = Everything().eval()
    ema = EMA(model, 0.5, **options)
    _ = ema.module
    with torch.no_grad():
        for tensor in tensors(model):
            write(tensor)
    ema.update()
    with ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(ema(X), model(X))


def test_between_updates_a_counted_write_is_enough() -> None:
    model = Everything()
    ema = EMA(model, 0.5)
    _ = ema.module
    model.frozen.load_state_dict({"weight": torch.eye(2), "bias": torch.ones(2)})
    assert torch.equal(ema.module.frozen.weight, torch.eye(2))


def test_batchnorm_statistics_that_are_ignored_are_the_models() -> None:
    model = Everything()
    ema = EMA(model, 0.5, buffers="ignore")
    _ = ema.module
    model.train()(torch.randn(8, 2))
    ema.update()
    assert torch.equal(ema.module.norm.running_mean, model.norm.running_mean)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "half": lambda module: module.half(),
    "another layer": lambda module: setattr(module, "trained", nn.Linear(2, 2)),
    "another parameter": lambda module: setattr(module.trained, "weight", nn.Parameter(torch.zeros(2, 2))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_module_that_was_taken_off_the_average_is_made_again(change: Callable[[nn.Module], object]) -> None:
    model = Everything()
    ema = EMA(model, 0.5)
    given = ema.module
    change(given)
    ema.update()
    assert ema.module is not given
    assert ema.module.trained.weight.data_ptr() == ema.tracks["average"].tensors["trained.weight"].data_ptr()
    assert ema.module is ema.module


# --- copy_to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", ["auto", "copy", "ignore"])
def test_another_model_gets_all_that_the_module_computes_with(buffers: Any) -> None:
    model, other = Everything(), Everything(bias=3.0)
    ema = EMA(model, 0.5, buffers=buffers)
    ema.update()
    ema.copy_to(other)
    want, found = ema.module.state_dict(), other.state_dict()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_what_is_excluded_stays_the_other_models() -> None:
    other = Everything(bias=3.0)
    EMA(Everything(), 0.5, exclude="table").copy_to(other)
    assert torch.equal(other.table, torch.full((2,), 3.0))


def test_a_model_without_the_frozen_part_is_refused_whole() -> None:
    other = Everything(bias=3.0)
    before = other.trained.weight.clone()
    other.frozen = nn.Linear(3, 2)
    with pytest.raises(PlanError, match=r"frozen\.weight"):
        EMA(Everything(), 0.5).copy_to(other)
    assert torch.equal(other.trained.weight, before)


# --- what leads to the model -------------------------------------------------------------------------------


class Leading(nn.Module):
    """A layer reached by something that is not a module."""

    def __init__(self, lead: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer, self.gain = nn.Linear(2, 2), 1.0
        self.lead = lead(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.lead(x)


def nested(net: nn.Module) -> Any:
    def outer(scale: float) -> Callable[[Tensor], Tensor]:
        def inner(x: Tensor) -> Tensor:
            return net.layer(x) * scale

        return inner

    return outer(2.0)


def with_defaults(net: nn.Module) -> Any:
    def call(x: Tensor, layer: nn.Module = net.layer, *, again: nn.Module = net.layer) -> Tensor:
        return again(layer(x))

    return call


def counting(net: nn.Module) -> Any:
    calls = 0

    def call(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return net.layer(x) * calls / calls

    return call


def recursive(net: nn.Module) -> Any:
    def call(x: Tensor, depth: int = 2) -> Tensor:
        return call(net.layer(x), depth - 1) if depth else x

    return call


class Helper:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net.layer(x)


class Call:
    """Made of any function, and copied with it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class Indexed(dict[str, Any]):
    def __call__(self, x: Tensor) -> Tensor:
        return self["one"](x)


RIGHT: dict[str, Callable[[nn.Module], Any]] = {
    "a lambda over self": lambda net: lambda x: net.layer(x),
    "over a parameter": lambda net: lambda x, w=net.layer.weight: x @ w.T,
    "nested functions": nested,
    "defaults": with_defaults,
    "a counter": counting,
    "a recursion": recursive,
    "a bound method": lambda net: net.layer.forward,
    "a partial": lambda net: functools.partial(lambda layer, x: layer(x), net.layer),
    "a partial of a lambda": lambda net: functools.partial(lambda scale, x: net.layer(x) * scale, 2.0),
    "functions of functions": lambda net: functools.partial(
        lambda f, x: f[0](f[1]["a"](x)), [net.layer, {"a": lambda x: net.layer(x)}]
    ),
    "an object": Helper,
    "a weak reference": lambda net: functools.partial(lambda layer, x: layer()(x), weakref.ref(net.layer)),
    "a wrapped function": lambda net: functools.wraps(net.layer.forward)(lambda x: net.layer(x)),
}


@pytest.mark.parametrize("lead", RIGHT.values(), ids=RIGHT)
def test_what_leads_to_the_model_leads_to_the_average_in_the_module(lead: Callable[[nn.Module], Any]) -> None:
    model = Leading(lead)
    ema = EMA(model, 0.5)
    raw = ema.module(X).detach()
    with torch.no_grad():
        model.layer.weight.add_(1.0)
    ema.update()
    with ema.average_parameters(), torch.no_grad():
        want = model(X)
    assert not torch.allclose(want, raw)
    torch.testing.assert_close(ema(X), want)


def test_hooks_over_the_model_are_the_averages_in_the_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, inputs, output: model[1](output))
    model[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * model[0].weight.sum(),))
    ema = EMA(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.update()
    with ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(ema(X), model(X))


class Locked:
    """Refuses to be copied."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.lock = net, threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        return self.net.layer(x)


def in_an_object_of_a_function(net: nn.Module) -> Any:
    return Call(lambda x: net.layer(x))


the_net: nn.Module


def by_a_global(net: nn.Module) -> Any:
    global the_net
    the_net = net
    return lambda x: the_net.layer(x)


REFUSED: dict[str, Callable[[nn.Module], Any]] = {
    "an object that refuses": Locked,
    "a closure in an object": in_an_object_of_a_function,
    "a global name": by_a_global,
    "a method of a tensor": lambda net: net.layer.weight.matmul,
    "a mapping of functions": lambda net: Indexed(one=lambda x: net.layer(x)),
}


@pytest.mark.parametrize("lead", REFUSED.values(), ids=REFUSED)
def test_what_leads_to_the_model_whatever_is_done_is_refused_by_name(
    lead: Callable[[nn.Module], Any],
) -> None:
    model = Leading(lead)
    ema = EMA(model, 0.5)
    with pytest.raises(PlanError, match=r"Leading\.lead \(.*leads to the live weights.*average_parameters"):
        _ = ema.module
    with ema.average_parameters():
        model(X.reshape(2))


def test_a_function_that_leads_nowhere_is_the_same_function() -> None:
    seen: list[int] = []
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(1))
    EMA(model, 0.5)(X)
    assert seen == [1]


def test_what_a_class_drops_when_it_is_copied_is_dropped() -> None:
    """As Lightning's modules do with the trainer, which holds the live model."""

    class Trained(nn.Linear):
        def __getstate__(self) -> dict[str, Any]:
            return self.__dict__ | {"trainer": None}

    model = Trained(2, 2)
    model.trainer = Locked(model)
    assert EMA(model, 0.5).module.trainer is None


class Slotted(nn.Linear):
    __slots__ = ("__hidden", "scale", "unset")

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.scale = lambda x: super(Slotted, self).forward(x)
        self.__hidden = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x) * self.__hidden


def test_slots_come_along() -> None:
    model = Slotted()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    ema.update()
    with ema.average_parameters(), torch.no_grad():
        torch.testing.assert_close(ema(X), model(X))
    assert not hasattr(ema.module, "unset")


def test_an_exported_model_has_a_module() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model = torch.export.export(net.eval(), (torch.ones(4, 2),)).module()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    ema.update()
    x = torch.randn(4, 2)
    with ema.average_parameters(), torch.no_grad():
        want = model(x)
    torch.testing.assert_close(ema(x), want)


# --- exporting the average of an adapter --------------------------------------------------------------------


def _factor(model: nn.Module, layer: int, which: str) -> str:
    return next(n for n, _ in model.named_parameters() if f".{layer}.lora_{which}." in n)


def test_the_average_of_an_adapter_is_merged_and_saved(tmp_path: Path) -> None:
    torchvision_without_ops()  # PEFT imports it by way of transformers
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    config = peft.LoraConfig(target_modules=["0", "1"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    ema = EMA(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    ema.update()
    x = torch.randn(3, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ema.average_parameters(), torch.no_grad():
        want = model.eval()(x)
    merged = copy.deepcopy(ema.module).merge_and_unload()
    torch.testing.assert_close(merged(x), want)
    for i, plain in enumerate(base):  # the average of B times that of A, which is not the average of B·A
        b, a = (ema.tracks["average"].tensors[_factor(model, i, which)] for which in "BA")
        scale = model.base_model.model[i].scaling["default"]
        torch.testing.assert_close(merged[i].weight, plain.weight + scale * b @ a)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(ema(x), want)  # the average goes on as an adapter
    ema.module.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(loaded(x), want)
    ema.module.merge_and_unload()  # in the module itself, it spoils the module alone, which is made again
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(ema(x), want)
