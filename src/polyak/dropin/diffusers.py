"""diffusers' ``EMAModel``, as of diffusers 0.42.1."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from polyak.dropin._follower import Follower, matching, moved, overwrite, restored, tensors_in
from polyak.errors import ConfigError
from polyak.schedules import Capped, Warmup
from polyak.schedules.decay import beta_at, check, check_beta

Parameters = Iterable[nn.Parameter] | nn.Module
_OLD = {"max_value": "decay", "min_value": "min_decay", "device": "to()"}
_MODULE = "parameters is a module, which is deprecated: pass its parameters()."
_KINDS: dict[str, type] = {
    "decay": Real,
    "min_decay": Real,
    "optimization_step": int,
    "update_after_step": int,
    "use_ema_warmup": bool,
    "inv_gamma": Real,
    "power": Real,
}


class EMAModel:
    """An average of a list of parameters; those that need no gradient are copied.

    ``βₜ = max(min_decay, min(decay, (1+s)/(10+s)))``, ``s = t - update_after_step - 1``; 0 where s ≤ 0;
    with ``use_ema_warmup``, ``1-(1+s/inv_gamma)^(-power)`` instead of ``(1+s)/(10+s)``

    The arguments are diffusers', the old names ``max_value``, ``min_value`` and ``device`` included;
    ``foreach`` changes nothing: the fastest engine is used.

    Raises:
        ConfigError: ``decay`` or ``min_decay`` is outside [0, 1], or an argument is unknown.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMAModel(model.parameters(), decay=0.999)
        >>> ema.step(model.parameters())
        >>> round(ema.get_decay(100), 4)
        0.9174

    Source: the class of this name in diffusers 0.42.1.
    """

    def __init__(
        self,
        parameters: Parameters,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        foreach: bool = False,
        model_cls: Any | None = None,
        model_config: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if unknown := sorted(kwargs.keys() - _OLD.keys()):
            raise ConfigError(f"{', '.join(unknown)}: no such argument.")
        for name in [key for key, value in kwargs.items() if value is not None]:
            warnings.warn(f"{name} is an old argument: use {_OLD[name]}.", FutureWarning, stacklevel=2)
        if isinstance(parameters, nn.Module):
            warnings.warn(f"{_MODULE} It also means use_ema_warmup=True.", FutureWarning, stacklevel=2)
        self.decay: float = _first(kwargs.get("max_value"), decay)
        self.min_decay: float = _first(kwargs.get("min_value"), min_decay)
        check_beta("decay", self.decay)
        check_beta("min_decay", self.min_decay)
        self.update_after_step = update_after_step
        self.use_ema_warmup = use_ema_warmup or isinstance(parameters, nn.Module)
        self.inv_gamma, self.power, self.foreach = inv_gamma, power, foreach
        self.model_cls, self.model_config = model_cls, model_config
        self.optimization_step = 0
        self.cur_decay_value: float | None = None
        self.temp_stored_params: list[Tensor] | None = None
        self.shadow_params: list[Tensor] = [p.clone().detach() for p in _listed(parameters)]
        self._trained, self._frozen = Follower(), Follower()
        if kwargs.get("device") is not None:
            self.to(device=kwargs["device"])

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], model_cls: Any, foreach: bool = False) -> EMAModel:
        """Continue from a folder that ``save_pretrained`` wrote."""
        _, schedule = model_cls.from_config(path, return_unused_kwargs=True)
        model = model_cls.from_pretrained(path)
        average = cls(model.parameters(), model_cls=model_cls, model_config=model.config, foreach=foreach)
        average.load_state_dict(schedule)
        return average

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write a model that holds the averages, the schedule in its configuration.

        Raises:
            ConfigError: the average was made without ``model_cls`` and ``model_config``.
        """
        if self.model_cls is None or self.model_config is None:
            missing = "model_cls" if self.model_cls is None else "model_config"
            raise ConfigError(f"save_pretrained: {missing} is None; give it to the constructor.")
        model = self.model_cls.from_config(self.model_config)
        model.register_to_config(**{k: v for k, v in self.state_dict().items() if k != "shadow_params"})
        self.copy_to(model.parameters())
        model.save_pretrained(path)

    def get_decay(self, optimization_step: int) -> float:
        """β of a step."""
        passed = max(0, optimization_step - self.update_after_step - 1)
        if passed <= 0:
            return 0.0
        if self.use_ema_warmup:
            beta = beta_at(Warmup(self.decay, self.inv_gamma, self.power), passed + 1)
        else:
            beta = beta_at(Capped(self.decay), passed)
        return max(beta, self.min_decay)

    def step(self, parameters: Parameters) -> None:
        """Update the averages with the current parameters. Call it after each optimizer step."""
        if isinstance(parameters, nn.Module):
            warnings.warn(_MODULE, FutureWarning, stacklevel=2)
        lives = self._lives(parameters)
        beta = self.get_decay(self.optimization_step + 1)
        trained = [p.requires_grad for p in lives]
        if not all(trained):
            frozen = [not one for one in trained]
            self._frozen.copy(list(compress(self.shadow_params, frozen)), list(compress(lives, frozen)))
        self._trained.update(
            list(compress(self.shadow_params, trained)), list(compress(lives, trained)), beta
        )
        self.optimization_step += 1
        self.cur_decay_value = beta

    def copy_to(self, parameters: Parameters) -> None:
        """Overwrite the parameters with their averages."""
        overwrite(self._lives(parameters), self.shadow_params)

    def pin_memory(self) -> None:
        """Move the averages to pinned memory."""
        self.shadow_params = [p.pin_memory() for p in self.shadow_params]

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Move the averages; floating ones change their dtype too."""
        self.shadow_params = moved(self.shadow_params, device, dtype, non_blocking)

    def state_dict(self) -> dict[str, Any]:
        """The complete state under diffusers' keys; the tensors are not copies."""
        return {name: getattr(self, name) for name in (*_KINDS, "shadow_params")}

    def store(self, parameters: Parameters) -> None:
        """Keep a copy of the parameters for ``restore``, on the CPU."""
        self.temp_stored_params = [p.detach().to("cpu", copy=True) for p in self._lives(parameters)]

    def restore(self, parameters: Parameters) -> None:
        """Overwrite the parameters with the copy, and drop it.

        Raises:
            RuntimeError: there is none.
        """
        overwrite(self._lives(parameters), restored(self.temp_stored_params))
        self.temp_stored_params = None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state of this class or of diffusers'; what is missing stays as it is.

        Raises:
            ConfigError: a value is of the wrong kind. Nothing is changed then.
        """
        given = {name: state_dict[name] for name in _KINDS if name in state_dict}
        for name, value in given.items():
            kind = _KINDS[name]
            wrong = (
                type(value) is not kind
                if kind is bool
                else isinstance(value, bool) or not isinstance(value, kind)
            )
            check(name, value, f"must be a {kind.__name__.lower()}", not wrong)
        check_beta("decay", given.get("decay", self.decay))
        check_beta("min_decay", given.get("min_decay", self.min_decay))
        shadows = state_dict.get("shadow_params")
        if shadows is not None:
            self.shadow_params = tensors_in("shadow_params", shadows, self.shadow_params)
        for name, value in given.items():
            setattr(self, name, value)

    def _lives(self, parameters: Parameters) -> Sequence[nn.Parameter]:
        return matching(_listed(parameters), self.shadow_params)


def _listed(parameters: Parameters) -> list[nn.Parameter]:
    return list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)


def _first(value: float | None, default: float) -> float:
    return default if value is None else value
