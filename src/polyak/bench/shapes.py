"""Models to measure on: the tensor shapes of well-known networks, or a factory of the user's own.

What an update costs depends on the shapes and on nothing else, so most of these compute nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import nn

from polyak.errors import ConfigError

Shapes: TypeAlias = list[tuple[int, ...]]


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


def resnet50() -> Shapes:
    """161 tensors, 25.6 M parameters (He et al. 2015, arXiv 1512.03385, table 1)."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width_in = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for o, i, k in ((width, width_in, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(o, i, k, k), (o,), (o,)]
            if block == 0:
                shapes += [(4 * width, width_in, 1, 1), (4 * width,), (4 * width,)]
            width_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def vit_b() -> Shapes:
    """152 tensors, 86.6 M parameters (Dosovitskiy et al. 2020, arXiv 2010.11929, table 1, patch 16)."""
    d, hidden = 768, 3072
    attention: Shapes = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    mlp: Shapes = [(d,), (d,), (hidden, d), (hidden,), (d, hidden), (d,)]
    head: Shapes = [(d,), (d,), (1000, d), (1000,)]
    return [(1, 1, d), (1, 197, d), (d, 3, 16, 16), (d,), *(12 * (attention + mlp)), *head]


def many_small() -> Shapes:
    """750 tensors of 6,667: 5 M parameters in small pieces, where calls cost more than bytes."""
    return [(6667,)] * 750


def lenet() -> nn.Sequential:
    """10 tensors, 62,006 parameters: LeNet-5 (LeCun et al. 1998), which is trained here as well."""
    convolutions = nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()
    linear = nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *linear)


def classifying(model: nn.Module) -> Callable[[], object]:
    """Steps of AdamW on 64 random images, in whatever dtype and on whatever device the model has by then."""
    optimizer: list[torch.optim.Optimizer] = []

    def step() -> None:
        if not optimizer:
            optimizer.append(torch.optim.AdamW(model.parameters()))
        like = next(model.parameters())
        images = torch.randn(64, 3, 32, 32, device=like.device, dtype=like.dtype)
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
    """The model of that name, or what the user's own factory makes.

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
    made = _made(name, module, factory)
    model, step = cast("tuple[Any, Any]", made) if _is_pair(made) else (made, None)
    if not isinstance(model, nn.Module) or not (step is None or callable(step)):
        raise ConfigError(
            f"model={name!r}: {factory}() returned {_kind(made)}; it must return an nn.Module, "
            "or one and a function that takes a training step."
        )
    return Workload(model, step)


def _made(name: str, module: str, factory: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed script looks in its own folder only
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"model={name!r}: {module} cannot be imported: {said(error)}") from error
    if not callable(getattr(found, factory, None)):
        raise ConfigError(f"model={name!r}: {module} has no function {factory}.")
    try:
        return getattr(found, factory)()
    except Exception as error:
        raise ConfigError(f"model={name!r}: {factory}() raised {said(error)}") from error


def said(error: Exception) -> str:
    """An exception in one line: its type and its words, of long ones the beginning and the end."""
    words = " ".join(str(error).split())
    words = words if len(words) <= 300 else f"{words[:150]} … {words[-150:]}"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _is_pair(made: object) -> bool:
    return isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2


def _kind(made: object) -> str:
    if _is_pair(made):
        return "a pair of " + " and ".join(type(one).__name__ for one in cast("tuple[Any, Any]", made))
    return type(made).__name__
