"""The ``EMA`` of tutorials: ``update``, ``apply``, ``restore``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from polyak.dropin._follower import Shadow


class EMA(Shadow):
    """An average of the parameters of one model that need gradients.

    ``avg ← β·avg + (1-β)·θ``

    Raises:
        ConfigError: ``beta`` is outside [0, 1], or no parameter needs a gradient.
        SwapError: a method is called while the model holds the wrong weights.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMA(model, beta=0.99)
        >>> ema.update()
        >>> ema.apply()
        >>> ema.restore()
        >>> list(ema.state_dict())
        ['weight', 'bias']

    Source: the class as tutorials write it.
    """

    def __init__(self, model: nn.Module, beta: float) -> None:
        super().__init__(model, "beta", beta)
        self.model, self.beta = model, beta

    def update(self) -> None:
        """Update the average with the model's current weights."""
        self._update(self.model, self.beta)

    def apply(self) -> None:
        """Put the averages into the model. Nothing is copied."""
        self._swap_in(self.model)

    def restore(self) -> None:
        """Put the raw weights back."""
        self._swap_out(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the model's names; not copies."""
        return dict(self.shadow)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Continue from averages by name.

        Raises:
            ConfigError: a name or a shape differs. Nothing is changed then.
        """
        self._load(state_dict)
