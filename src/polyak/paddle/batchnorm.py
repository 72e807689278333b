"""BatchNorm statistics for averaged weights."""

# pyright: reportPrivateUsage=false
# Paddle has no other names for momentum and statistics.

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import paddle
from paddle import nn
from paddle.nn.layer.norm import _BatchNormBase

from polyak._core.swap_guard import accept
from polyak.errors import ConfigError
from polyak.paddle.tensors import overwrite

_NORMS = (_BatchNormBase, nn.BatchNorm)  # the latter is of Paddle's first API
Forward: TypeAlias = Callable[[nn.Layer, Any], object]


def update_batchnorm(layer: nn.Layer, loader: Iterable[Any], forward: Forward | None = None) -> None:
    """Measure the BatchNorm statistics of ``layer`` anew with the weights it holds.

    The statistics become the cumulative mean over the loader's batches. Everything else, dropout
    included, runs in evaluation mode, as it will when the statistics are used. Mode and momentum are
    as before afterwards; on an exception the old statistics are too.

    Args:
        layer: e.g. ``ema.module``, whose averaged weights have other activations than any layer that trained.
        loader: batches of any type.
        forward: ``forward(layer, batch)`` runs one batch. By default a tensor is passed as it is, a
            mapping as keyword arguments, and of a list or tuple the first element.

    Raises:
        ConfigError: the loader is empty.

    Examples:
        >>> layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1D(2))
        >>> update_batchnorm(layer, [paddle.ones([4, 2])])
        >>> bool(paddle.allclose(layer[1]._mean, layer[0](paddle.ones([1, 2]))[0]))
        True

    Source: Izmailov et al. 2018, arXiv 1803.05407, §3.1.
    """
    norms = [norm for norm in layer.sublayers(include_self=True) if isinstance(norm, _NORMS)]
    if not norms:
        return
    run = forward or _forward
    with _measuring(layer, norms), paddle.no_grad():
        empty = True
        for batch in loader:
            run(layer, batch)
            empty = False
        if empty:
            raise ConfigError(
                "loader gave no batch, so there is nothing to measure (a generator can be used only once). "
                "The statistics are as before."
            )


@contextmanager
def _measuring(layer: nn.Layer, norms: list[_BatchNormBase | nn.BatchNorm]) -> Generator[None]:
    modes = [(one, one.training) for one in layer.sublayers(include_self=True)]
    momenta = [norm._momentum for norm in norms]
    before = [(norm._mean.clone(), norm._variance.clone()) for norm in norms]
    watch: Any = _Cumulative  # Paddle's stub wants a hook that changes the inputs
    hooks = [norm.register_forward_pre_hook(watch()) for norm in norms]
    try:
        layer.eval()
        for norm in norms:
            norm.train()
        yield
    except BaseException:
        for norm, (mean, variance) in zip(norms, before, strict=True):
            overwrite(norm._mean, mean)
            overwrite(norm._variance, variance)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm._momentum = momentum
        for one, mode in modes:
            one.training = mode
        accept([id(tensor) for norm in norms for tensor in (norm._mean, norm._variance)])


class _Cumulative:
    """The momentum that makes the statistics the mean over the calls so far."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, norm: Any, inputs: Any) -> None:
        if not self._calls:  # what was there gets no weight, but 0·NaN is NaN
            norm._mean.zero_()
            norm._variance.zero_()
        self._calls += 1
        norm._momentum = 1 - 1 / self._calls


def _forward(layer: nn.Layer, batch: Any) -> object:
    if isinstance(batch, Mapping):
        return layer(**batch)
    return layer(batch[0] if isinstance(batch, list | tuple) else batch)
