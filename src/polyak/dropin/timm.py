"""timm's ``ModelEma``, ``ModelEmaV2`` and ``ModelEmaV3``, as of timm 1.0.31."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor, nn

from polyak.dropin._follower import Follower, parameters_only
from polyak.dropin._modules import copied, without_gradients
from polyak.schedules import Warmup
from polyak.schedules.decay import beta_at, refuse_several


class ModelEmaV3(nn.Module):
    """An average of everything in a model's ``state_dict``, with timm's warm-up.

    ``βₜ = clip(1-(1+s/γ)^(-p), min_decay, decay)``, ``s = step - update_after_step - 1``; 0 where s ≤ 0

    The arguments are timm's; ``stochastic_rounding`` and ``foreach`` change nothing: 16-bit averages are
    always rounded so, or they would stop moving, and the fastest engine is used.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = ModelEmaV3(model, decay=0.99, use_warmup=True)
        >>> averaged.update(model, step=1)
        >>> round(averaged.get_decay(101), 4)
        0.9539

    Source: timm 1.0.31, ``timm.utils.ModelEmaV3``.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ) -> None:
        super().__init__()
        self.module = copied(model).eval()
        if device is not None or dtype is not None:
            self.module.to(device=device, dtype=dtype)
        refuse_several("decay", decay)
        self.decay, self.min_decay = decay, min_decay
        self.update_after_step, self.use_warmup = update_after_step, use_warmup
        self.warmup_gamma, self.warmup_power = warmup_gamma, warmup_power
        self.foreach, self.device, self.dtype = foreach, device, dtype
        self.stochastic_rounding = stochastic_rounding
        self.stochastic_rounding_seed = stochastic_rounding_seed
        self.exclude_buffers = exclude_buffers
        self._all = Follower(seed=stochastic_rounding_seed)
        self._without_buffers = Follower(parameters_only, seed=stochastic_rounding_seed)

    def get_decay(self, step: int | None = None) -> float:
        """β of a step; without one, the constant."""
        if step is None:
            return self.decay
        passed = max(0, step - self.update_after_step - 1)
        if passed <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        rule = Warmup(self.decay, self.warmup_gamma, self.warmup_power, min(self.min_decay, self.decay))
        return max(beta_at(rule, passed + 1), self.min_decay)

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Update the average with the model's current weights."""
        apply = self.apply_update_no_buffers_ if self.exclude_buffers else self.apply_update_
        apply(model, self.get_decay(step))

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """``update`` with the given β, buffers averaged."""
        self._all.update(self.module, model, decay)

    def apply_update_no_buffers_(self, model: nn.Module, decay: float) -> None:
        """``update`` with the given β, buffers copied, those that no state_dict holds as well."""
        self._without_buffers.update(self.module, model, decay)

    def set(self, model: nn.Module) -> None:
        """Reset to the model's current weights."""
        self._all.copy(self.module, model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ModelEmaV2(nn.Module):
    """An average of everything in a model's ``state_dict`` with a constant β.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = ModelEmaV2(model, decay=0.99)
        >>> averaged.update(model)

    Source: timm 1.0.31, ``timm.utils.ModelEmaV2``.
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.9999, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.module = copied(model).eval()
        refuse_several("decay", decay)
        self.decay, self.device = decay, device
        if device is not None:
            self.module.to(device=device)
        self._follower = Follower()

    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        self._follower.update(self.module, model, self.decay)

    def set(self, model: nn.Module) -> None:
        """Reset to the model's current weights."""
        self._follower.copy(self.module, model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ModelEma:
    """timm's first class: ``ema`` is the averaged copy.

    If the checkpoint ``resume`` has no ``state_dict_ema``, a warning says so and the average starts at the
    model.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = ModelEma(model, decay=0.99)
        >>> averaged.update(model)

    Source: timm 1.0.31, ``timm.utils.ModelEma``.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: str = "", resume: str = "") -> None:
        self.ema = without_gradients(copied(model).eval())
        self.ema_has_module = "module" in dict(self.ema.named_children())
        refuse_several("decay", decay)
        self.decay, self.device = decay, device
        if device:
            self.ema.to(device=device)
        self._follower = Follower()
        if resume:
            self._load_checkpoint(resume)

    @property
    def module(self) -> nn.Module:
        """``ema``, under the name that ``timm.utils.unwrap_model`` reads."""
        return self.ema

    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        self._follower.update(self.ema, model, self.decay)

    def _load_checkpoint(self, checkpoint_path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Scripts call it too, with a file in memory."""
        checkpoint: Mapping[str, Any] = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        if "state_dict_ema" not in checkpoint:
            warnings.warn(
                f"resume={checkpoint_path} holds {', '.join(checkpoint)} and no state_dict_ema: "
                "the average starts at the model.",
                stacklevel=3,
            )
            return
        theirs: Mapping[str, Tensor] = checkpoint["state_dict_ema"]
        prefix = "module." if self.ema_has_module else ""
        self.ema.load_state_dict({prefix + name.removeprefix(prefix): t for name, t in theirs.items()})
