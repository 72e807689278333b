"""``torch.optim.swa_utils``, as of torch 2.13."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import SWALR as SWALR

from polyak._core.tensor_map import Role, TensorEntry
from polyak._type_guards import is_sequence
from polyak.dropin._follower import Follower, Holder, everything, parameters_only, role_in_state_dict
from polyak.dropin._modules import HostCounter, copied
from polyak.errors import ConfigError
from polyak.schedules import Constant, Decay, Uniform
from polyak.schedules.decay import check_beta
from polyak.torch.batchnorm import update_batchnorm

__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]

Count: TypeAlias = Tensor | int
AvgFn: TypeAlias = Callable[[Tensor, Tensor, Count], Tensor]
MultiAvgFn: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor], Count], None]


@dataclass(frozen=True)
class _Rule:
    """A decay as one of torch's averaging functions; ``AveragedModel`` takes the decay alone."""

    decay: Decay

    def beta(self, averaged: int) -> float:
        """β when ``averaged`` models are in the average already."""
        return self.decay(averaged + 1)


class _ListRule(_Rule):
    def __call__(self, averages: Sequence[Tensor], lives: Sequence[Tensor], averaged: Count) -> None:
        Follower().update(averages, lives, self.beta(int(averaged)), int(averaged))


class _TensorRule(_Rule):
    def __call__(self, average: Tensor, live: Tensor, averaged: Count) -> Tensor:
        made = average.clone()
        _ListRule(self.decay)([made], [live], averaged)
        return made


def get_ema_multi_avg_fn(decay: float = 0.999) -> MultiAvgFn:
    """``avg ← β·avg + (1-β)·θ`` for lists of tensors, in place; ``ConfigError`` if β is outside [0, 1]."""
    check_beta("decay", decay)
    return _ListRule(Constant(decay))


def get_swa_multi_avg_fn() -> MultiAvgFn:
    """``avg ← avg + (θ - avg)/(n+1)`` for lists of tensors, in place; n are in the average already."""
    return _ListRule(Uniform())


def get_ema_avg_fn(decay: float = 0.999) -> AvgFn:
    """``β·avg + (1-β)·θ`` for one tensor; ``ConfigError`` if β is outside [0, 1]."""
    check_beta("decay", decay)
    return _TensorRule(Constant(decay))


def get_swa_avg_fn() -> AvgFn:
    """``avg + (θ - avg)/(n+1)`` for one tensor; n are in the average already."""
    return _TensorRule(Uniform())


class AveragedModel(nn.Module):
    """An average of a model's parameters: by default the plain mean.

    ``avg ← avg + (θ - avg)/(n+1)``, or the rule of ``avg_fn`` or ``multi_avg_fn``; n = 0 copies.

    The arguments are torch's. Functions of your own are called only with floating tensors of one device and
    dtype; counters and masks are copied.

    Raises:
        ConfigError: both functions are given.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        >>> averaged.update_parameters(model)
        >>> int(averaged.n_averaged)
        1

    Source: torch 2.13, ``torch.optim.swa_utils.AveragedModel``.
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: nn.Module,
        device: int | str | torch.device | None = None,
        avg_fn: AvgFn | None = None,
        multi_avg_fn: MultiAvgFn | None = None,
        use_buffers: bool = False,
    ) -> None:
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise ConfigError("avg_fn and multi_avg_fn are both given: give at most one of them.")
        self.module = copied(model)
        if device is not None:
            self.module = self.module.to(device)
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers
        self._counter = HostCounter()
        self._follower = Follower(_buffers_too if use_buffers else parameters_only)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        averaged = self._counter.of(self.n_averaged)
        function = self.multi_avg_fn or self.avg_fn or _ListRule(Uniform())
        if averaged == 0:
            self._follower.copy(self.module, model)
        elif isinstance(function, _Rule):
            self._follower.update(self.module, model, function.beta(averaged))
        else:
            self._call_with(*self._follower.tensors(self.module, model))
            self._follower.copy_rest(self.module, model)
        self._counter.set(self.n_averaged, averaged + 1)

    @torch.no_grad()
    def _call_with(self, averages: list[Tensor], lives: list[Tensor]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
        for average, live in zip(averages, lives, strict=True):
            groups.setdefault((average.device, average.dtype), []).append((average, live))
        for (device, _), pairs in groups.items():
            averaged = self.n_averaged.to(device)
            if self.multi_avg_fn is not None:
                self.multi_avg_fn([a for a, _ in pairs], [live for _, live in pairs], averaged)
                continue
            for average, live in pairs:
                average.copy_(cast(AvgFn, self.avg_fn)(average, live, averaged))


def _buffers_too(holder: Holder, entry: TensorEntry[Tensor]) -> Role:
    """Buffers that no state_dict holds are averaged as well."""
    return role_in_state_dict(holder, entry) if entry.saved else everything(holder, entry)


def update_bn(
    loader: Iterable[Any], model: nn.Module, device: int | str | torch.device | None = None
) -> None:
    """Recompute the BatchNorm statistics of ``model`` in one pass over the data.

    Everything but BatchNorm runs in evaluation mode, as it will when the statistics are used.

    Raises:
        ConfigError: the loader is empty. The statistics are as before then.

    Examples:
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> update_bn([torch.ones(4, 2)], model)
        >>> model[0].running_mean
        tensor([1., 1.])

    Source: torch 2.13, ``torch.optim.swa_utils.update_bn``.
    """

    def forward(model: nn.Module, batch: Any) -> object:
        given = batch[0] if is_sequence(batch) else batch
        return model(given if device is None else given.to(device))

    update_batchnorm(model, loader, forward)
