"""What happens to tensors that are not trained: running statistics, counters, power-iteration vectors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from polyak._core.swap_guard import accept
from polyak._core.tensor_map import BufferKind
from polyak.errors import ConfigError

Forward: TypeAlias = Callable[[nn.Module, Any], object]

_RUNNING_STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")  # torch, Keras


def sort_of(module: nn.Module, key: str) -> BufferKind:
    """Which sort of buffer this is, by its name and what stands beside it."""
    if key in ("_u", "_v") or (key.endswith(("_u", "_v")) and f"{key[:-2]}_orig" in module._parameters):  # pyright: ignore[reportPrivateUsage]
        return "vector"
    return "statistic" if key in _RUNNING_STATISTICS else "other"


def update_batchnorm(model: nn.Module, loader: Iterable[Any], forward: Forward | None = None) -> None:
    """Measure the BatchNorm statistics of ``model`` anew with the weights it holds.

    The statistics become the cumulative mean over the loader's batches. Everything else, dropout
    included, runs in evaluation mode, as it will when the statistics are used. Mode and momentum are
    as before afterwards; on an exception the old statistics are too.

    Args:
        model: e.g. ``ema.module``, whose averaged weights have other activations than any model that trained.
        loader: batches of any type.
        forward: ``forward(model, batch)`` runs one batch. By default a tensor is passed as it is, a
            mapping as keyword arguments, and of a list or tuple the first element, each tensor moved
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
    run = forward or _forward
    if not norms:
        return
    with _measuring(model, norms), torch.no_grad():
        seen = 0
        for seen, batch in enumerate(loader, 1):  # noqa: B007
            run(model, batch)
        if not seen:
            raise ConfigError(
                "loader gave no batch, so there is nothing to measure (a generator can be used only once). "
                "The statistics are as before."
            )


@contextmanager
def _measuring(model: nn.Module, norms: list[_BatchNorm]) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    before = [{k: b.clone() for k, b in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # torch's word for the cumulative mean
        yield
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for key, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(buffers[key])
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
        accept([id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)])


def _forward(model: nn.Module, batch: Any) -> object:
    tensor = next(iter(model.parameters()), None)
    device = tensor.device if tensor is not None else None
    if isinstance(batch, Mapping):
        named = cast(Mapping[str, Any], batch)
        return model(**{key: _moved(value, device) for key, value in named.items()})
    return model(_moved(batch[0] if isinstance(batch, list | tuple) else batch, device))  # pyright: ignore[reportUnknownArgumentType]


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
