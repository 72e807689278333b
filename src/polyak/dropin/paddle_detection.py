"""PaddleDetection's ``ModelEMA``, which PaddleYOLO shares, without its mistakes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from paddle import Tensor, nn

from polyak.dropin._paddle_from_zero import DecayType, FromZero, schedule
from polyak.schedules import Profile


class ModelEMA(FromZero):
    """An average of everything in a layer's ``state_dict``: a sum that starts at zero, with bias correction.

    ``vₜ = βₜ·vₜ₋₁ + (1-βₜ)·θₜ``, ``v₀ = 0``, ``avgₜ = vₜ / (1 - β₁·β₂·…·βₜ)``

    The original divides by ``1 - βₜᵗ`` with the last β alone, again after every resume, and not at all for
    "exponential"; it returns zeros before the first update and averages integers.

    The arguments are PaddleDetection's: βₜ is ``min(β, t/(9+t))`` for "threshold", ``β·(1 - exp(-t/2000))``
    for "exponential" and β for "normal"; frozen parameters are never averaged, whatever
    ``ema_filter_no_grad`` says.

    Raises:
        ConfigError: ``ema_decay_type`` is none of these.

    Examples:
        >>> import paddle
        >>> layer = nn.Linear(2, 1)
        >>> ema = ModelEMA(layer, decay=0.9998)
        >>> ema.update()
        >>> bool(paddle.allclose(ema.apply()["weight"], layer.weight))
        True

    Source: ``ppdet.optimizer.ModelEMA`` of PaddleDetection 2.6.
    """

    def __init__(
        self,
        model: nn.Layer,
        decay: float = 0.9998,
        ema_decay_type: DecayType = "threshold",
        cycle_epoch: int = -1,
        ema_black_list: Collection[str] | None = None,
        ema_filter_no_grad: bool = False,
    ) -> None:
        self.decay, self.cycle_epoch = decay, cycle_epoch
        self.ema_decay_type: DecayType = ema_decay_type
        self.epoch = 0
        names = list(model.state_dict())
        listed = [key for key in ema_black_list or () if any(key in name for name in names)]
        self.ema_black_list = {name for name in names if any(key in name for key in listed)}
        self.ema_filter_no_grad = ema_filter_no_grad
        super().__init__(model, schedule(decay, ema_decay_type), listed)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """vₜ by name, and the layer's own tensors where they are not averaged."""
        return self._sums()

    def update(self, model: nn.Layer | None = None) -> None:
        """Update the average with the layer's current values; a different layer is a ``ConfigError``."""
        self._take(self._ema.model if model is None else model)

    def apply(self) -> dict[str, Tensor]:
        """The average by name, in the layer's dtypes, for ``model.set_state_dict``."""
        tensors = self._averages()
        self.epoch += 1
        if 0 < self.cycle_epoch == self.epoch:
            self.reset()
        return tensors

    def resume(self, state_dict: Mapping[str, Tensor], step: int = 0) -> None:
        """Continue from an average that ``apply`` returned after ``step`` updates.

        Raises:
            CheckpointError: a tensor is missing or has another shape. Nothing is changed then.
        """
        self._resume("resume", state_dict, step, divided=True)

    def reset(self) -> None:
        """Restart from zero."""
        self.epoch = 0
        self._ema.reset()
        self._to_zero()


def corrected(
    state_dict: Mapping[str, Tensor],
    step: int,
    decay: float = 0.9998,
    ema_decay_type: DecayType = "threshold",
) -> dict[str, Tensor]:
    """An average that the original saved, divided as it should have been.

    ``avg = saved · (1 - βₜᵗ) / (1 - β₁·…·βₜ)``, where the original divided at all. It holds for a run that
    was never resumed; each resume of the original divided once more, by an amount that is not in the file.

    Args:
        state_dict: of one of their ``.pdparams`` files: everything floating in it was averaged.
        step: updates before it was saved: epochs · batches.
        decay: β of that run.
        ema_decay_type: of that run.

    Returns:
        The tensors by name; those that are not floating as they are.

    Examples:
        >>> import paddle
        >>> corrected({"w": paddle.ones([1])}, step=1)["w"].item()  # it had divided by 1 - 0.1¹, as is right
        1.0
    """
    profile = Profile.from_decay(schedule(decay, ema_decay_type), step)
    last = schedule(decay, ema_decay_type)(step)
    divided = 1.0 if ema_decay_type == "exponential" else 1 - float(np.power(last, step))
    factor = divided / (1 - profile.initial_weight)
    return {k: v * factor if v.is_floating_point() else v for k, v in state_dict.items()}
