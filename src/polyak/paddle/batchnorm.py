"""BatchNorm statistics for averaged weights."""

# pyright: reportPrivateUsage=false
# Paddle has no other names for momentum and statistics.

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import paddle
from paddle import nn
from paddle.nn.layer.norm import _BatchNormBase

from polyak._core.batchnorm import Norms, measure, pass_batch
from polyak.paddle import tensors

BatchNorm: TypeAlias = _BatchNormBase | nn.BatchNorm  # the latter is of Paddle's first API
Forward: TypeAlias = Callable[[nn.Layer, Any], object]


def update_batchnorm(layer: nn.Layer, loader: Iterable[Any], forward: Forward | None = None) -> None:
    """Recompute the BatchNorm statistics of ``layer`` with its current weights.

    The statistics become the cumulative mean over the loader's batches. Everything else, dropout
    included, runs in evaluation mode, as it will when the statistics are used. Mode and momentum are
    restored afterwards; on an exception the old statistics are too.

    Args:
        layer: e.g. ``ema.module``, whose averaged weights have other activations than any layer that trained.
        loader: batches of any type.
        forward: ``forward(layer, batch)`` runs one batch. By default a tensor is passed as it is, a
            mapping as keyword arguments, and the first element of a list or tuple.

    Raises:
        ConfigError: the loader is empty.

    Examples:
        >>> layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1D(2))
        >>> update_batchnorm(layer, [paddle.ones([4, 2])])
        >>> bool(paddle.allclose(layer[1]._mean, layer[0](paddle.ones([1, 2]))[0]))
        True

    Source: Izmailov et al. 2018, arXiv 1803.05407, §3.1.
    """
    layers = layer.sublayers(include_self=True)
    norms = [one for one in layers if isinstance(one, BatchNorm)]
    statistics = [tensor for norm in norms for tensor in (norm._mean, norm._variance)]
    if norms:
        run = partial(forward or _forward, layer)
        with paddle.no_grad():
            measure(Norms(norms, statistics, _cumulative(norms)), layer, layers, loader, run, tensors)


@contextmanager
def _cumulative(norms: Sequence[BatchNorm]) -> Generator[None]:
    momenta = [norm._momentum for norm in norms]
    watch: Any = _Cumulative  # Paddle's stub wants a hook that changes the inputs
    hooks = [norm.register_forward_pre_hook(watch()) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm._momentum = momentum


class _Cumulative:
    """The momentum that makes the statistics the mean over the calls so far."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, norm: Any, inputs: Any) -> None:
        if not self._calls:  # the old value gets no weight, but 0·NaN is NaN
            norm._mean.zero_()
            norm._variance.zero_()
        self._calls += 1
        norm._momentum = 1 - 1 / self._calls


def _forward(layer: nn.Layer, batch: object) -> object:
    return pass_batch(layer, batch, lambda value: value)
