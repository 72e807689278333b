"""Models to measure on: the tensor shapes of well-known networks, or a factory of the user's own.

The cost of an update depends only on the shapes, so most of these compute nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, cast

import torch
from torch import nn

from polyak.bench.sizes import Shapes, many_small, resnet50, vit_b
from polyak.errors import ConfigError


class Workload(NamedTuple):
    """A model, and a function that takes one training step of it; None where it cannot be trained."""

    model: nn.Module
    step: Callable[[], object] | None = None


class Shaped(nn.Module):
    """Parameters of given shapes and no computation."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(s, generator=generator)) for s in shapes)


def lenet() -> nn.Sequential:
    """10 tensors, 62,006 parameters: LeNet-5 (LeCun et al. 1998), which is trained here as well."""
    convolutions = nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()
    linear = nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *linear)


def classifying(model: nn.Module, side: int = 32) -> Callable[[], object]:
    """Steps of AdamW on 64 random images, in the model's dtype and on its device."""
    optimizer: list[torch.optim.Optimizer] = []

    def step() -> None:
        if not optimizer:
            optimizer.append(torch.optim.AdamW(model.parameters()))
        like = next(model.parameters())
        images = torch.randn(64, 3, side, side, device=like.device, dtype=like.dtype)
        labels = torch.randint(10, (64,), device=like.device)
        optimizer[0].zero_grad()
        nn.functional.cross_entropy(model(images).float(), labels).backward()
        optimizer[0].step()

    return step


def _lenet() -> Workload:
    model = lenet()
    return Workload(model, classifying(model))


MODELS: dict[str, Callable[[], Workload]] = {
    "resnet50": lambda: Workload(Shaped(resnet50())),
    "vit_b": lambda: Workload(Shaped(vit_b())),
    "many_small": lambda: Workload(Shaped(many_small())),
    "lenet": _lenet,
}


def load(name: str) -> Workload:
    """The model of that name, or the result of the user's own factory.

    Args:
        name: a key of ``MODELS``, or "YOUR.module:factory", found from the working folder too. The factory
            takes no arguments and returns an ``nn.Module``, or that and a function of no arguments that
            takes one training step of it.

    Raises:
        ConfigError: there is no such model, or the factory fails or returns something else.
    """
    if name in MODELS:
        return MODELS[name]()
    module, colon, factory = name.partition(":")
    if not colon or not module or not factory:
        raise ConfigError(f"model={name!r}: must be one of {', '.join(MODELS)}, or YOUR.module:factory.")
    made = _build(name, module, factory)
    model, step = made if _is_pair(made) else (made, None)
    if not isinstance(model, nn.Module) or not (step is None or callable(step)):
        raise ConfigError(
            f"model={name!r}: {factory}() returned {_kind(made)}; it must return an nn.Module, "
            "or one and a function that takes a training step."
        )
    return Workload(model, step)


def _build(name: str, module: str, factory: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed script looks in its own folder only
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"model={name!r}: {module} cannot be imported: {one_line(error)}") from error
    if not callable(getattr(found, factory, None)):
        raise ConfigError(f"model={name!r}: {module} has no function {factory}.")
    try:
        return getattr(found, factory)()
    except Exception as error:
        raise ConfigError(f"model={name!r}: {factory}() raised {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An exception in one line: its type and its message, shortened in the middle."""
    words = " ".join(str(error).split())
    words = words if len(words) <= 300 else f"{words[:150]} … {words[-150:]}"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _is_pair(made: object) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2


def _kind(made: object) -> str:
    if _is_pair(made):
        return "a pair of " + " and ".join(type(one).__name__ for one in made)
    return type(made).__name__
