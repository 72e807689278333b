"""ema-pytorch's ``EMA``, ``KarrasEMA`` and ``PostHocEMA``, as of ema-pytorch 0.8.3."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polyak.dropin._follower import Follower
from polyak.dropin._modules import device_of, in_evaluation
from polyak.dropin._names import Named, Names, ema_model_for
from polyak.dropin._post_hoc import KarrasEMA as KarrasEMA
from polyak.dropin._post_hoc import PostHocEMA as PostHocEMA
from polyak.errors import ConfigError
from polyak.schedules import Warmup
from polyak.schedules.decay import beta_at, check_beta

Maker = Callable[[], nn.Module]


class EMA(Named):
    """An average of a model's parameters and floating buffers, with a warm-up; it holds the model too.

    ``βₜ = clip(1-(1+s/γ)^(-p), min_value, beta)``, ``s = step - update_after_step - 1``; 0 where s ≤ 0

    The arguments are ema-pytorch's: β acts once for each ``update_every``, as there. Devices and dtypes may
    always differ and the fastest engine is used, whatever ``allow_different_devices``, ``coerce_dtype``
    and ``use_foreach`` say.

    Raises:
        ConfigError: an argument is invalid.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMA(model, beta=0.99, update_after_step=0, update_every=1)
        >>> ema.update()
        >>> ema(torch.ones(1, 2)).shape
        torch.Size([1, 1])

    Source: ema-pytorch 0.8.3.
    """

    def __init__(
        self,
        model: nn.Module,
        ema_model: nn.Module | Maker | None = None,
        beta: float = 0.9999,
        update_after_step: int = 100,
        update_every: int = 10,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        param_or_buffer_names_no_ema: Collection[str] = frozenset(),
        ignore_names: Collection[str] = frozenset(),
        ignore_startswith_names: Collection[str] = frozenset(),
        include_online_model: bool = True,
        allow_different_devices: bool = False,
        use_foreach: bool = False,
        update_model_with_ema_every: int | None = None,
        update_model_with_ema_beta: float = 0.0,
        forward_method_names: tuple[str, ...] = (),
        move_ema_to_online_device: bool = False,
        coerce_dtype: bool = False,
        lazy_init_ema: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"model is a {type(model).__name__}: only modules are averaged here.")
        if isinstance(param_or_buffer_names_no_ema, str):
            raise ConfigError("param_or_buffer_names_no_ema is one string: pass a set or list of names.")
        check_beta("beta", beta)
        self.beta, self.is_frozen = beta, beta == 1.0
        self.update_every, self.update_after_step = update_every, update_after_step
        self.inv_gamma, self.power, self.min_value = inv_gamma, power, min_value
        self.param_or_buffer_names_no_ema = param_or_buffer_names_no_ema
        self.ignore_names, self.ignore_startswith_names = ignore_names, ignore_startswith_names
        self.names = Names(param_or_buffer_names_no_ema, ignore_names, tuple(ignore_startswith_names))
        self.include_online_model = include_online_model
        self.online_model = model if include_online_model else [model]
        self.allow_different_devices, self.use_foreach = allow_different_devices, use_foreach
        self.move_ema_to_online_device, self.coerce_dtype = move_ema_to_online_device, coerce_dtype
        self.update_model_with_ema_every = update_model_with_ema_every
        self.update_model_with_ema_beta = update_model_with_ema_beta
        self.forward_method_names = forward_method_names
        self._towards = Follower(roles=self.names)
        self.ema_model = None
        if lazy_init_ema and ema_model is not None:
            raise ConfigError(
                "ema_model is given and lazy_init_ema=True: a lazy one is copied from the model."
            )
        if not lazy_init_ema:
            self.init_ema(ema_model_for(ema_model, model))
        self._count_from_zero()

    def init_ema(self, ema_model: nn.Module | None = None) -> None:
        """Make the module that holds the averages."""
        self._adopt(ema_model_for(ema_model, self.model), self.names)
        for name in self.forward_method_names:
            setattr(self, name, getattr(self.ema_model, name))

    def add_to_optimizer_post_step_hook(self, optimizer: Optimizer) -> RemovableHandle:
        """Update after each step of the optimizer."""

        def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.update()

        return optimizer.register_step_post_hook(hook)

    @property
    def model(self) -> nn.Module:
        """The model that is averaged."""
        online = cast(Any, self.online_model)
        return online if self.include_online_model else online[0]

    @torch.no_grad()
    def forward_eval(self, *args: Any, **kwargs: Any) -> Any:
        """Forward through the averages in evaluation mode; every mode is as before afterwards."""
        with in_evaluation(self._averages) as module:
            return module(*args, **kwargs)

    def update_model_with_ema(self, decay: float | None = None) -> None:
        """Move the model towards its average; it keeps the share ``decay`` of itself."""
        kept = self.update_model_with_ema_beta if decay is None else decay
        if kept == 0.0:
            self.copy_params_from_ema_to_model()
        elif not self.is_frozen:
            self._towards.update(self.model, self._averages, kept)

    def get_current_decay(self) -> float:
        """β of this step."""
        passed = max(0, self._steps.of(self.step) - self.update_after_step - 1)
        if passed <= 0:
            return 0.0
        rule = Warmup(self.beta, self.inv_gamma, self.power, min(self.min_value, self.beta))
        return beta_at(rule, passed + 1)

    def update(self) -> None:
        """Update the average when an update is due. Call it after each training step."""
        step = self._steps.of(self.step)
        self._steps.set(self.step, step + 1)
        if not self._started.of(self.initted):
            if self.ema_model is None:
                self.init_ema()
            self.copy_params_from_model_to_ema()
            self._started.set(self.initted, 1)
            return
        due = step % self.update_every == 0
        if due and step <= self.update_after_step:
            self.copy_params_from_model_to_ema()
            return
        if due:
            self.update_moving_average(self._averages, self.model)
        every = self.update_model_with_ema_every
        if every is not None and step % every == 0:
            self.update_model_with_ema()

    def update_moving_average(
        self, ma_model: nn.Module, current_model: nn.Module, current_decay: float | None = None
    ) -> None:
        """Move ``ma_model``, which is ``ema_model`` or the model, towards the other."""
        if self.is_frozen:
            return
        if self.move_ema_to_online_device and device_of(ma_model) != device_of(current_model):
            ma_model.to(device_of(current_model))
        beta = self.get_current_decay() if current_decay is None else current_decay
        follower = self._follower if ma_model is self.ema_model else self._towards
        follower.update(ma_model, current_model, beta)
