"""``ExponentialMovingAverage`` as Paddle's users expect it beside ``paddle.optimizer``, in dynamic graphs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from paddle import Tensor, nn

from polyak.core.state import LoadReport, State
from polyak.errors import ConfigError, SwapError
from polyak.paddle.ema import EMA
from polyak.rules import Capped, Constant, Debiased, Decay


class ExponentialMovingAverage:
    """The average of a list of parameters, stepped like an optimizer.

    ``avgₜ = decay·avgₜ₋₁ + (1-decay)·θₜ``, ``avg₀ = θ₀``

    Args:
        parameters: ``layer.parameters()``, or the layer itself: then its buffers, BatchNorm's statistics
            among them, are averaged too, and the state goes by the layer's names.
        decay: in [0, 1].
        bias_correction: ``avgₜ / (1-decayᵗ)`` with ``avg₀ = 0``: no weight on the initial parameters. These
            are the numbers that the static-graph class applies.
        thres_steps: ``βₜ = min(decay, (1+t)/(10+t))`` instead of decay. The static-graph class, given t,
            starts from 0 and divides by ``1-βₜᵗ``, so that its weights do not sum to 1; here they do.
        options: of ``polyak.paddle.EMA``: ``dtype``, ``every``, ``start``, ``exclude``, …

    Raises:
        ConfigError: an argument is outside its rule, or both schedules are asked for.
        PlanError: nothing to average.

    Examples:
        >>> import paddle
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = paddle.optimizer.AdamW(parameters=layer.parameters())
        >>> ema = ExponentialMovingAverage(layer.parameters(), decay=0.999)
        >>> layer(paddle.ones([1, 2])).sum().backward()
        >>> optimizer.step()
        >>> ema.step()
        >>> with ema.apply_to():
        ...     prediction = layer(paddle.ones([1, 2]))

    Source: the static-graph class of this name, ``paddle.static.ExponentialMovingAverage``.
    """

    def __init__(
        self,
        parameters: nn.Layer | Sequence[Tensor],
        decay: float = 0.999,
        bias_correction: bool = False,
        thres_steps: bool = False,
        **options: Any,
    ) -> None:
        if bias_correction and thres_steps:
            raise ConfigError("bias_correction=True and thres_steps=True: each is a schedule; choose one.")
        schedule: Decay = (Debiased if bias_correction else Capped if thres_steps else Constant)(decay)
        layer = parameters if isinstance(parameters, nn.Layer) else Parameters(parameters)
        self.ema = EMA(layer, schedule, **options)
        self._undo = ExitStack()

    def step(self) -> None:
        """Take the present parameters into the average. Call it after ``optimizer.step()``."""
        self.ema.update()

    def update(self) -> None:
        """The static-graph class's name for ``step``."""
        self.step()

    def apply_to(self) -> Applied:
        """Put the average into the parameters, until ``restore()`` or the end of a ``with`` block.

        Raises:
            SwapError: it is there already.
        """
        if self.ema.live != "raw":
            raise SwapError("apply_to: the parameters hold the average already. Call restore() first.")
        self._undo.enter_context(self.ema.average_parameters())
        return Applied(self, need_restore=True)

    def apply(self, need_restore: bool = True) -> Applied:
        """``apply_to``, and with ``need_restore=False`` a ``with`` block leaves the average in."""
        self.apply_to()
        return Applied(self, need_restore)

    def restore(self) -> None:
        """Put the raw parameters back; without an average in them nothing happens."""
        self._undo.close()

    def state_dict(self) -> State:
        """Everything resuming takes, for ``paddle.save``."""
        return self.ema.state_dict()

    def set_state_dict(self, state: State) -> LoadReport:
        """Continue where ``state_dict`` left off, bit for bit.

        Raises:
            CheckpointError: the state is malformed or differs. Nothing is changed then.
        """
        return self.ema.load_state_dict(state)


class Applied:
    """The average is in the parameters; a ``with`` block on this restores them at its end."""

    def __init__(self, average: ExponentialMovingAverage, need_restore: bool) -> None:
        self._average, self._need_restore = average, need_restore

    def __enter__(self) -> ExponentialMovingAverage:
        return self._average

    def __exit__(self, *exception: object) -> None:
        if self._need_restore:
            self._average.restore()


class Parameters(nn.Layer):
    """A layer that only holds: given parameters, by the names Paddle gave them.

    Raises:
        ConfigError: something else is among them, or two have one name.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        for parameter in parameters:
            if not isinstance(parameter, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(
                    f"parameters holds a {type(parameter).__name__}: give layer.parameters(), or the layer."
                )
            # Directly, because add_parameter refuses names with dots in them, which Paddle's all have.
            if self._parameters.setdefault(parameter.name, parameter) is not parameter:
                raise ConfigError(
                    f"parameters holds two tensors named {parameter.name!r}: give the layer instead, "
                    "whose names tell them apart."
                )
