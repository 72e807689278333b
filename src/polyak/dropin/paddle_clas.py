"""PaddleClas's ``ExponentialMovingAverage``: a second layer that holds the average."""

from __future__ import annotations

from paddle import nn

from polyak.dropin._paddle_from_zero import check_same
from polyak.paddle import EMA
from polyak.schedules import Constant


class ExponentialMovingAverage:
    """``avgₜ = decay·avgₜ₋₁ + (1-decay)·θₜ``, ``avg₀ = θ₀``, over everything in a layer's ``state_dict``.

    The original pairs tensors by their order and averages integers; here integers are copied.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> average = ExponentialMovingAverage(layer, decay=0.9999)
        >>> average.update(layer)
        >>> average.module(layer.weight.t()).shape
        paddle.Size([1, 1])

    Source: ``ppcls.utils.ema.ExponentialMovingAverage`` of PaddleClas 2.6.
    """

    def __init__(self, model: nn.Layer, decay: float = 0.9999) -> None:
        self.decay = decay
        self._ema = EMA(model, Constant(decay), buffers="average")

    @property
    def module(self) -> nn.Layer:
        """The layer that holds the average, in evaluation mode."""
        return self._ema.module

    def update(self, model: nn.Layer) -> None:
        """Update the average with the layer's current values; a different layer is a ``ConfigError``."""
        check_same(model, self._ema, "update")
        self._ema.update()

    def set(self, model: nn.Layer) -> None:
        """Restart from the layer's current values."""
        check_same(model, self._ema, "set")
        self._ema.reset()
