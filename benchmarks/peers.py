"""The libraries beside polyak, each as three functions: update, averages, swap.

All average with the same constant decay: warm-ups are off, and first calls that only copy are behind when
``theirs`` returns. A library is imported when it is named, and only then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from polyak.bench.contender import Contender, Named
from polyak.bench.shapes import one_line
from polyak.errors import ConfigError, MissingExtraError


def library(module: str) -> Any:
    """A module of another library.

    Raises:
        MissingExtraError: it is not installed; the message holds the pip line.
        ConfigError: it is, and cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise MissingExtraError(package, "peers") from error
        raise ConfigError(f"{package} is installed but cannot be imported: {one_line(error)}") from error
    except Exception as error:  # a package that does not suit the torch beside it raises anything
        raise ConfigError(f"{package} is installed but cannot be imported: {one_line(error)}") from error


def theirs(name: str, model: nn.Module, betas: Sequence[float], store: str) -> Contender:
    """Another library, with one of its objects for each track.

    Args:
        name: a key of ``ADAPTERS``.
        model: whose parameters are averaged.
        betas: a decay for each track.
        store: the dtype of the averages.

    Returns:
        The contender.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: it cannot be imported, or cannot keep such an average of this model.
    """
    if store in ("split", "compensated"):
        raise ConfigError(f"{name} has no {store} averages.")
    load, make = ADAPTERS[name]
    found = load()
    try:
        made = [make(found, model, beta, getattr(torch, store)) for beta in betas]
        for one in made:
            for _ in range(3):  # first calls copy, one or two of them; what cannot average raises after
                one.update()
    except Exception as error:
        raise ConfigError(f"{name} cannot average this model in {store}: {one_line(error)}") from error
    if len(made) == 1:
        return made[0]

    def update() -> None:
        for one in made:
            one.update()

    return Contender(update, lambda: [one.averages()[0] for one in made], made[0].swap)


def _of(module: nn.Module) -> Callable[[], list[Named]]:
    return lambda: [dict(module.named_parameters())]


def _listed(model: nn.Module, averages: Sequence[Tensor]) -> list[Named]:
    names = [name for name, _ in model.named_parameters()]
    return [dict(zip(names, averages, strict=True))]


def _swa_utils(swa: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    averaged = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(beta))
    averaged.module.to(store)
    return Contender(lambda: averaged.update_parameters(model), _of(averaged.module))


def _timm(timm: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    averaged = timm.ModelEmaV3(model, decay=beta, dtype=store)
    return Contender(lambda: averaged.update(model), _of(averaged.module))


def _torch_ema(torch_ema: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    averaged = torch_ema.ExponentialMovingAverage(model.parameters(), decay=beta, use_num_updates=False)
    averaged.to(dtype=store)
    return Contender(
        averaged.update, lambda: _listed(model, averaged.shadow_params), averaged.average_parameters
    )


def _ema_pytorch(ema_pytorch: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    averaged = ema_pytorch.EMA(
        model, beta=beta, update_after_step=-1, update_every=1, min_value=beta, use_foreach=True
    )
    averaged.ema_model.to(store)
    return Contender(averaged.update, _of(averaged.ema_model))


def _ultralytics(ultralytics: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    averaged = ultralytics.ModelEMA(model, decay=beta, tau=1e-9)
    averaged.ema.to(store)
    return Contender(lambda: averaged.update(model), _of(averaged.ema))


def _diffusers(diffusers: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    averaged = diffusers.EMAModel(model.parameters(), decay=beta, min_decay=beta, foreach=True)
    averaged.to(dtype=store)

    @contextmanager
    def swap() -> Generator[None]:
        with ExitStack() as undo:
            averaged.store(model.parameters())
            undo.callback(averaged.restore, list(model.parameters()))
            averaged.copy_to(model.parameters())
            yield

    return Contender(
        lambda: averaged.step(model.parameters()), lambda: _listed(model, averaged.shadow_params), swap
    )


def _loop(_: Any, model: nn.Module, beta: float, store: torch.dtype) -> Contender:
    """The loop people write by hand."""
    averaged = copy.deepcopy(model).to(store)

    def update() -> None:
        with torch.no_grad():
            for e, p in zip(averaged.parameters(), model.parameters(), strict=True):
                e.copy_(beta * e + (1 - beta) * p)

    return Contender(update, _of(averaged))


Adapter: TypeAlias = Callable[[Any, nn.Module, float, torch.dtype], Contender]
# How each is found, and its adapter, in the order of the tables.
ADAPTERS: dict[str, tuple[Callable[[], Any], Adapter]] = {
    "swa_utils": (lambda: library("torch.optim.swa_utils"), _swa_utils),
    "timm": (lambda: library("timm.utils"), _timm),
    "torch_ema": (lambda: library("torch_ema"), _torch_ema),
    "ema_pytorch": (lambda: library("ema_pytorch"), _ema_pytorch),
    "ultralytics": (lambda: library("ultralytics.utils.torch_utils"), _ultralytics),
    "diffusers": (lambda: library("diffusers.training_utils"), _diffusers),
    "loop": (lambda: None, _loop),
}
PEERS = tuple(ADAPTERS)
