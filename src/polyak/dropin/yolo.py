"""The ``ModelEMA`` with ``shadow`` and ``backup`` of many YOLO and Kaggle repositories."""

from __future__ import annotations

from torch import nn

from polyak.dropin._follower import Shadow


class ModelEMA(Shadow):
    """An average of the parameters that need gradients, by name in ``shadow``.

    ``avg ← β·avg + (1-β)·θ``

    ``backup`` holds the raw weights between ``apply_shadow`` and ``restore``, and is empty otherwise.

    Raises:
        ConfigError: ``decay`` is outside [0, 1], or no parameter needs a gradient.
        SwapError: a method is called while the model holds the wrong weights.
        PlanError: a parameter is missing in the model or has another shape.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> ema = ModelEMA(model, decay=0.99)
        >>> ema.update(model)
        >>> ema.apply_shadow(model)
        >>> ema.restore(model)

    Source: the class as many repositories copy it.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        super().__init__(model, "decay", decay)
        self.decay = decay

    def update(self, model: nn.Module) -> None:
        """Update the average with the model's current weights."""
        self._update(model, self.decay)

    def apply_shadow(self, model: nn.Module) -> None:
        """Put the averages into the model. Nothing is copied."""
        self._swap_in(model)

    def restore(self, model: nn.Module) -> None:
        """Put the raw weights back."""
        self._swap_out(model)
