"""mmengine's averaged models, as of mmengine 0.10.7."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from polyak.dropin._follower import Follower, parameters_only
from polyak.dropin._modules import HostCounter, copied, without_gradients
from polyak.errors import ConfigError
from polyak.schedules import Uniform
from polyak.schedules.decay import check_integer, refuse_several


class _Refused(ConfigError, AssertionError):
    """Also an AssertionError, which mmengine raises and code may catch."""


class BaseAveragedModel(nn.Module, ABC):
    """A copy of a model that follows it by the rule of ``avg_func``.

    The arguments are mmengine's: every ``interval``-th update averages, the others copy buffers.

    Raises:
        ConfigError: ``interval`` is below 1.

    Examples:
        >>> class Latest(BaseAveragedModel):
        ...     def avg_func(self, averaged_param, source_param, steps):
        ...         averaged_param.copy_(source_param)
        >>> model = nn.Linear(2, 1)
        >>> latest = Latest(model)
        >>> latest.update_parameters(model)
        >>> int(latest.steps)
        1

    Source: mmengine 0.10.7, ``mmengine.model.averaged_model``.
    """

    steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__()
        check_integer("interval", interval, 1)
        self.module = without_gradients(copied(model))
        if device is not None:
            self.module = self.module.to(device)
        self.interval, self.update_buffers = interval, update_buffers
        self.register_buffer("steps", torch.tensor(0, dtype=torch.long, device=device))
        self._counter = HostCounter()
        self._follower = Follower() if update_buffers else Follower(parameters_only)

    @property
    def avg_parameters(self) -> dict[str, Tensor]:
        """The averaged tensors by name."""
        return dict(self.module.state_dict() if self.update_buffers else self.module.named_parameters())

    @abstractmethod
    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: Any) -> None:
        """Move one average in place; ``steps`` counts the updates before this one."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def update_parameters(self, model: nn.Module) -> None:
        """Update the average when an update is due."""
        steps = self._counter.of(self.steps)
        if steps == 0:
            self._follower.copy(self.module, model)
        elif steps % self.interval:
            if not self.update_buffers:
                self._follower.copy_rest(self.module, model)
        elif isinstance(self, _ByDecay) and type(self).avg_func is _ByDecay.avg_func:
            self._follower.update(self.module, model, self.beta(steps))
        else:
            with torch.no_grad():
                for average, live in zip(*self._follower.tensors(self.module, model), strict=True):
                    self.avg_func(average, live, self.steps)
            self._follower.copy_rest(self.module, model)
        self._counter.set(self.steps, steps + 1)


class _ByDecay(BaseAveragedModel):
    """The averages whose rule is a decay."""

    @abstractmethod
    def beta(self, steps: int) -> float:
        """β after this number of updates."""

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: Any) -> None:
        """Move one average in place, as ``update_parameters`` moves all of them."""
        Follower().update([averaged_param], [source_param], self.beta(int(steps)), int(steps))


class StochasticWeightAverage(_ByDecay):
    """The plain mean.

    ``avg ← avg + (θ - avg)/(n+1)``, n the averages taken before

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = StochasticWeightAverage(model)
        >>> averaged.update_parameters(model)

    Source: mmengine 0.10.7.
    """

    def beta(self, steps: int) -> float:
        return Uniform()(steps // self.interval + 1)


class ExponentialMovingAverage(_ByDecay):
    """``avg ← (1-momentum)·avg + momentum·θ``

    ``momentum`` acts once for each ``interval``, as in the original.

    Raises:
        ConfigError: ``momentum`` is outside (0, 1).

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = ExponentialMovingAverage(model, momentum=0.01)
        >>> averaged.update_parameters(model)

    Source: mmengine 0.10.7.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, interval, device, update_buffers)
        refuse_several("momentum", momentum)
        if not 0 < momentum < 1:
            raise _Refused(f"momentum must be in range (0, 1), for it is 1-β: {momentum} is not.")
        if momentum > 0.5:
            warnings.warn(
                f"momentum={momentum} is the weight of the newest parameters, usually far below 0.5.",
                stacklevel=3 if isinstance(self, MomentumAnnealingEMA) else 2,
            )
        self.momentum = momentum

    def beta(self, steps: int) -> float:
        return 1 - self.momentum


class MomentumAnnealingEMA(ExponentialMovingAverage):
    """``avg ← (1-mₜ)·avg + mₜ·θ``, ``mₜ = max(momentum, gamma/(gamma+t))``

    Raises:
        ConfigError: ``momentum`` is outside (0, 1), or ``gamma`` is not above 0.

    Examples:
        >>> averaged = MomentumAnnealingEMA(nn.Linear(2, 1), gamma=100)
        >>> averaged.beta(100)
        0.5

    Source: mmengine 0.10.7.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 100,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        if not gamma > 0:
            raise _Refused(f"gamma must be greater than 0: {gamma} is not.")
        self.gamma = gamma

    def beta(self, steps: int) -> float:
        return 1 - max(self.momentum, self.gamma / (self.gamma + steps))
