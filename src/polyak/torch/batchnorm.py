"""BatchNorm statistics for averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from polyak._core.batchnorm import Norms, measure, pass_batch
from polyak.torch import tensors

Forward: TypeAlias = Callable[[nn.Module, Any], object]


def update_batchnorm(model: nn.Module, loader: Iterable[Any], forward: Forward | None = None) -> None:
    """Recompute the BatchNorm statistics of ``model`` with its current weights.

    The statistics become the cumulative mean over the loader's batches. Everything else, dropout
    included, runs in evaluation mode, as it will when the statistics are used. Mode and momentum are
    restored afterwards; on an exception the old statistics are too.

    Args:
        model: e.g. ``ema.module``, whose averaged weights have other activations than any model that trained.
        loader: batches of any type.
        forward: ``forward(model, batch)`` runs one batch. By default a tensor is passed as it is, a
            mapping as keyword arguments, and the first element of a list or tuple, each tensor moved
            to the model's device.

    Raises:
        ConfigError: the loader is empty.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> update_batchnorm(model, [torch.ones(4, 2)])
        >>> bool(torch.allclose(model[1].running_mean, model[0](torch.ones(1, 2))[0]))
        True

    Source: Izmailov et al. 2018, arXiv 1803.05407, §3.1.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    if norms:
        run = partial(forward or _forward, model)
        with torch.no_grad():
            found = Norms(norms, statistics, _cumulative(norms))
            measure(found, model, model.modules(), loader, run, tensors)


@contextmanager
def _cumulative(norms: Sequence[_BatchNorm]) -> Generator[None]:
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the cumulative mean
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _forward(model: nn.Module, batch: object) -> object:
    tensor = next(iter(model.parameters()), None)
    device = None if tensor is None else tensor.device
    return pass_batch(model, batch, lambda value: value.to(device) if isinstance(value, Tensor) else value)
