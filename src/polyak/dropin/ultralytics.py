"""Ultralytics' ``ModelEMA``, as of ultralytics 8.4.190."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn

from polyak._core.tensor_map import Role, TensorEntry
from polyak.dropin._follower import Follower, Holder, role_in_state_dict
from polyak.dropin._modules import copied, without_gradients
from polyak.schedules import Ramp
from polyak.schedules.decay import beta_at
from polyak.torch.tensor_map import unwrap

_TEACHER = "teacher_model"


def _without_teacher(holder: Holder, entry: TensorEntry[Tensor]) -> Role:
    """The model without a distillation teacher, which is not trained."""
    return "share" if entry.name.startswith(f"{_TEACHER}.") else role_in_state_dict(holder, entry)


class ModelEMA:
    """An average of everything in a model's ``state_dict``, with a ramp.

    ``avg ← avg + (1-βₜ)·(θ - avg)``, ``βₜ = decay·(1 - e^(-t/tau))``, t = updates

    The arguments are Ultralytics'. ``decay`` is a function of ``updates`` that may be replaced;
    ``enabled = False`` stops the average.

    Raises:
        ConfigError: ``decay`` or ``tau`` is invalid.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> averaged = ModelEMA(model)
        >>> averaged.update(model)
        >>> averaged.updates, round(averaged.decay(2000), 4)
        (1, 0.6321)

    Source: the class of this name in ultralytics 8.4.190.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        self.ema = without_gradients(copied(unwrap(model)).eval())
        if _TEACHER in dict(self.ema.named_children()):
            self.ema.register_module(_TEACHER, None)
        self.updates, self.enabled = updates, True
        self._ramp = Ramp(decay, tau)
        self.decay: Callable[[int], float] = self._decay
        self._follower = Follower(_without_teacher)

    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        if self.enabled:
            self._follower.update(self.ema, model, self.decay(self.updates + 1))
            self.updates += 1

    def update_attr(
        self, model: nn.Module, include: Collection[str] = (), exclude: Collection[str] = ()
    ) -> None:
        """Copy the model's public attributes, or those of ``include``; ``training`` only if named."""
        if not self.enabled:
            return
        for name, value in vars(unwrap(model)).items():
            wanted = name in include if include else name != "training"
            if wanted and not name.startswith("_") and name not in exclude:
                setattr(self.ema, name, value)

    def _decay(self, updates: int) -> float:
        return beta_at(self._ramp, updates) if updates else 0.0
