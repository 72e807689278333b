"""timm's ``ModelEma``, ``ModelEmaV2`` and ``ModelEmaV3``, as of timm 1.0.31."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyak.errors import CheckpointError
from polyak.rules import Warmup
from polyak.torch.mirror import Mirror


class ModelEmaV3(nn.Module):
    """An average of everything in a model's ``state_dict``, with timm's warm-up.

    ``βₜ = clip(1-(1+s/γ)^(-p), min_decay, decay)``, ``s = step - update_after_step - 1``; 0 where s ≤ 0

    Args:
        model: what to average; ``module`` is a copy of it in evaluation mode.
        decay: β, in [0, 1].
        min_decay: the least β of the warm-up.
        update_after_step: copy the model up to this step.
        use_warmup: β grows with the step.
        warmup_gamma: γ.  warmup_power: p.
        device: where the copy lives; by default beside the model.
        dtype: of the copy; by default the model's.
        stochastic_rounding: accepted; 16-bit averages are always rounded so, or they would stand still.
        stochastic_rounding_seed: of the random bits.
        foreach: accepted; the fastest engine is taken.
        exclude_buffers: copy buffers instead of averaging them.

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
        self.module = copy.deepcopy(model).eval()
        if device is not None or dtype is not None:
            self.module.to(device=device, dtype=dtype)
        self.decay, self.min_decay = decay, min_decay
        self.update_after_step, self.use_warmup = update_after_step, use_warmup
        self.warmup_gamma, self.warmup_power = warmup_gamma, warmup_power
        self.foreach, self.device, self.dtype = foreach, device, dtype
        self.stochastic_rounding = stochastic_rounding
        self.stochastic_rounding_seed = stochastic_rounding_seed
        self.exclude_buffers = exclude_buffers
        self._mirror = Mirror(self.module, "copy" if exclude_buffers else "average", stochastic_rounding_seed)

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
        return max(rule(passed + 1), self.min_decay)

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Take the model's present weights in."""
        self._mirror.update(model, self.get_decay(step))

    def set(self, model: nn.Module) -> None:
        """Become the model's present weights."""
        self._mirror.copy(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ModelEmaV2(nn.Module):
    """An average of everything in a model's ``state_dict`` with a constant β.

    Args:
        model: what to average; ``module`` is a copy of it in evaluation mode.
        decay: β, in [0, 1].
        device: where the copy lives; by default beside the model.

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
        self.module = copy.deepcopy(model).eval()
        self.decay, self.device = decay, device
        if device is not None:
            self.module.to(device=device)
        self._mirror = Mirror(self.module)

    def update(self, model: nn.Module) -> None:
        """Take the model's present weights in."""
        self._mirror.update(model, self.decay)

    def set(self, model: nn.Module) -> None:
        """Become the model's present weights."""
        self._mirror.copy(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ModelEma:
    """timm's first class: ``ema`` is the averaged copy.

    Args:
        model: what to average.
        decay: β, in [0, 1].
        device: where the copy lives; by default beside the model.
        resume: a timm training checkpoint whose ``state_dict_ema`` to go on with.

    Raises:
        CheckpointError: the checkpoint holds no ``state_dict_ema``.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = ModelEma(model, decay=0.99)
        >>> averaged.update(model)

    Source: timm 1.0.31, ``timm.utils.ModelEma``.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: str = "", resume: str = "") -> None:
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.device = decay, device
        if device:
            self.ema.to(device=device)
        self._mirror = Mirror(self.ema)
        if resume:
            self._load_checkpoint(resume)

    def update(self, model: nn.Module) -> None:
        """Take the model's present weights in."""
        self._mirror.update(model, self.decay)

    def _load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        checkpoint: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if "state_dict_ema" not in checkpoint:
            raise CheckpointError(f"{path} holds {', '.join(checkpoint)}: no state_dict_ema to go on with.")
        theirs: Mapping[str, Tensor] = checkpoint["state_dict_ema"]
        wrapped = all(name.startswith("module.") for name in self.ema.state_dict())
        bare = (
            {name.removeprefix("module."): tensor for name, tensor in theirs.items()} if wrapped else theirs
        )
        self.ema.load_state_dict({f"module.{name}" if wrapped else name: t for name, t in bare.items()})
