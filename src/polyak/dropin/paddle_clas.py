"""PaddleClas's ``ExponentialMovingAverage``: a second layer that holds the average."""

from __future__ import annotations

from paddle import nn

from polyak.errors import ConfigError
from polyak.paddle import EMA


class ExponentialMovingAverage:
    """``avgₜ = decay·avgₜ₋₁ + (1-decay)·θₜ``, ``avg₀ = θ₀``, over everything in a layer's ``state_dict``.

    The original pairs tensors by their order and averages integers; here integers are copied.

    Args:
        model: the layer.
        decay: β.

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
        self._ema = EMA(model, decay, buffers="average")

    @property
    def module(self) -> nn.Layer:
        """The layer that holds the average, in evaluation mode."""
        return self._ema.module

    def update(self, model: nn.Layer) -> None:
        """Take the layer's present values in.

        Raises:
            ConfigError: it is another layer than the one given at first.
        """
        self._check(model)
        self._ema.update()

    def set(self, model: nn.Layer) -> None:
        """Begin anew from the layer as it is."""
        self._check(model)
        self._ema.reset()

    def _check(self, model: nn.Layer) -> None:
        if model is not self._ema.model:
            raise ConfigError("the model is another one; make an average of its own for it.")
