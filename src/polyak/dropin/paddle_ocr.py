"""PaddleOCR's ``ModelEMA``: PaddleDetection's average with other arguments and methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddle import Tensor, nn

from polyak.dropin._paddle_from_zero import DecayType, FromZero, schedule
from polyak.errors import CheckpointError
from polyak.schedules.decay import check


class ModelEMA(FromZero):
    """An average of everything in a layer's ``state_dict``: a sum that starts at zero, with bias correction.

    ``vₜ = βₜ·vₜ₋₁ + (1-βₜ)·θₜ``, ``v₀ = 0``, ``avgₜ = vₜ / (1 - β₁·β₂·…·βₜ)``

    The original divides by ``1 - βₜᵗ`` with the last β alone, after a resume with the full decay in place of
    the last β, and not at all for "exponential"; it returns zeros before the first update and averages
    integers.

    The arguments are PaddleOCR's: βₜ is ``min(β, t/(9+t))`` for "threshold", ``β·(1 - exp(-t/gamma))`` for
    "exponential" and β for "normal"; frozen parameters are never averaged, whatever ``ema_filter_no_grad``
    says.

    Raises:
        ConfigError: ``ema_decay_type`` is none of these, or ``gamma`` is not positive.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> ema = ModelEMA(layer, decay=0.9998, gamma=2000)
        >>> ema.update(layer)
        >>> again = ModelEMA(layer, decay=0.9998, gamma=2000)
        >>> again.set_state_dict(ema.state_dict_for_save())
        >>> again.step
        1

    Source: ``ppocr.utils.ema.ModelEMA`` of PaddleOCR.
    """

    def __init__(
        self,
        model: nn.Layer,
        decay: float = 0.9998,
        gamma: int = 2000,
        ema_decay_type: DecayType = "threshold",
        ema_filter_no_grad: bool = False,
    ) -> None:
        check("gamma", gamma, "must be positive", gamma > 0)
        self.decay, self.gamma = decay, gamma
        self.ema_decay_type: DecayType = ema_decay_type
        self.ema_filter_no_grad = ema_filter_no_grad
        super().__init__(model, schedule(decay, ema_decay_type, gamma))

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """vₜ by name, and the layer's own tensors where they are not averaged."""
        return self._sums()

    def update(self, model: nn.Layer) -> None:
        """Update the average with the layer's current values; a different layer is a ``ConfigError``."""
        self._take(model)

    def apply(self) -> dict[str, Tensor]:
        """The average by name, in the layer's dtypes, for ``model.set_state_dict``."""
        return self._averages()

    def state_dict_for_save(self) -> dict[str, Any]:
        """``{"ema_state": vₜ by name, "step": t}``; the original can continue from it too."""
        return {"ema_state": self._sums(), "step": self.step}

    def set_state_dict(self, d: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict_for_save`` returned, here or in the original.

        Raises:
            CheckpointError: ``d`` is something else, or a tensor is missing or has another shape. Nothing is
                changed then.
        """
        if not {"ema_state", "step"} <= d.keys():
            raise CheckpointError(
                f"set_state_dict: {', '.join(map(repr, d))} given; must hold 'ema_state' and 'step', as "
                "state_dict_for_save() returns them. Nothing was loaded."
            )
        self._resume("set_state_dict", d["ema_state"], d["step"], divided=False)
