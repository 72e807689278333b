"""``ExponentialMovingAverage`` in the style of ``paddle.optimizer``, for dynamic graphs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paddle import Tensor, nn
from paddle.static import Executor

from polyak._core.swap_guard import Block
from polyak.errors import ConfigError, SwapError
from polyak.paddle.ema import EMA
from polyak.schedules import Capped, Constant, Debiased, Decay

if TYPE_CHECKING:
    from polyak._core.load_report import LoadReport
    from polyak._core.state_dict import State


class ExponentialMovingAverage:
    """The average of a list of parameters, stepped like an optimizer.

    ``avgₜ = decay·avgₜ₋₁ + (1-decay)·θₜ``, ``avg₀ = θ₀``

    Args:
        parameters: the layer: its buffers, including BatchNorm's statistics, are averaged too, and state
            and files use the layer's names. Or ``layer.parameters()``: then they use Paddle's numbered
            parameter names ("linear_0.w_0"), which no layer's ``set_state_dict`` knows.
        decay: in [0, 1].
        bias_correction: ``avgₜ / (1-decayᵗ)`` with ``avg₀ = 0``: no weight on the initial parameters. These
            are the numbers that the static-graph class applies.
        thres_steps: ``βₜ = min(decay, (1+t)/(10+t))`` instead of decay. The static-graph class, given t,
            starts from 0 and divides by ``1-βₜᵗ``, so that its weights do not sum to 1; here they do.
        name: the static-graph class's prefix of its variables; ignored here.
        options: of ``polyak.paddle.EMA``: ``dtype``, ``every``, ``start``, ``exclude``, …

    Raises:
        ConfigError: an argument is invalid, or both schedules are requested.
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
        thres_steps: bool | None = False,
        name: str | None = None,
        **options: Any,
    ) -> None:
        _refuse_static(parameters, thres_steps)
        if bias_correction and thres_steps:
            raise ConfigError("bias_correction=True and thres_steps=True: each is a schedule; choose one.")
        schedule: Decay = (Debiased if bias_correction else Capped if thres_steps else Constant)(decay)
        layer = parameters if isinstance(parameters, nn.Layer) else Parameters(parameters)
        self.ema = EMA(layer, schedule, **options)
        self._block: Block[nn.Layer] | None = None  # while the parameters hold the average

    def step(self) -> None:
        """Update the average with the current parameters. Call it after ``optimizer.step()``.

        Raises:
            SwapError: the parameters hold the average.
        """
        self._refuse_while_applied("step")
        self.ema.update()

    def update(self) -> None:
        """The static-graph class's name for ``step``."""
        self.step()

    def apply_to(self) -> Applied:
        """Put the average into the parameters, until ``restore()`` or the end of a ``with`` block.

        Raises:
            SwapError: the parameters hold it already.
        """
        if self.ema.live != "raw":
            raise SwapError("apply_to: the parameters hold the average already. Call restore() first.")
        self._block = self.ema.average_parameters()
        try:
            self._block.__enter__()
        except BaseException:
            self._block = None
            raise
        return Applied(self, need_restore=True)

    def apply(self, executor: Executor | None = None, need_restore: bool = True) -> Applied:
        """``apply_to``; with ``need_restore=False`` the end of a ``with`` block does not restore.

        Args:
            executor: of the static-graph class; not needed in a dynamic graph.
            need_restore: put the raw parameters back at the end of the block.

        Raises:
            ConfigError: ``executor`` is something else.
            SwapError: the parameters hold the average already.
        """
        _refuse_other("apply", executor)
        self.apply_to()
        return Applied(self, need_restore)

    def restore(self, executor: Executor | None = None) -> None:
        """Put the raw parameters back; without an average in them nothing happens.

        Raises:
            ConfigError: ``executor`` is not a static-graph executor.
        """
        _refuse_other("restore", executor)
        try:
            if self._block is not None:
                self._block.__exit__()
        finally:
            self._block = None

    def state_dict(self) -> State:
        """Everything needed to resume, for ``paddle.save``.

        Raises:
            SwapError: the parameters hold the average.
        """
        self._refuse_while_applied("state_dict")
        return self.ema.state_dict()

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the average as ``polyak.paddle.EMA.save`` does; ``options`` are that method's.

        Raises:
            CheckpointError: the file cannot be written. An old file is intact.
            SwapError: the parameters hold the average.
        """
        self._refuse_while_applied("save")
        self.ema.save(path, **options)
        if isinstance(self.ema.model, Parameters):
            warnings.warn(
                f"{os.fspath(path)} uses Paddle's numbered parameter names, for instance "
                f"{next(iter(self.ema.model.state_dict()))!r}: in a layer of the same process "
                "set_state_dict(…, use_structured_name=False) loads them. "
                "ExponentialMovingAverage(layer) saves under the layer's names, which fit anywhere.",
                stacklevel=2,
            )

    def set_state_dict(self, state: State) -> LoadReport:
        """Continue where ``state_dict`` left off, bit for bit.

        Raises:
            CheckpointError: the state is malformed or differs. Nothing is changed then.
            SwapError: the parameters hold the average.
        """
        self._refuse_while_applied("set_state_dict")
        return self.ema.load_state_dict(state)

    def _refuse_while_applied(self, verb: str) -> None:
        if self._block is not None:
            raise SwapError(
                f"{verb}: the parameters hold the average since apply_to(). Call "
                "restore() after evaluating, or apply in a with block; optimizer steps taken before that "
                "change the average instead of the raw parameters."
            )


class Applied:
    """The average is in the parameters; a ``with`` block on this restores them at its end."""

    def __init__(self, average: ExponentialMovingAverage, need_restore: bool) -> None:
        self._average, self._need_restore = average, need_restore

    def __enter__(self) -> ExponentialMovingAverage:
        return self._average

    def __exit__(self, *exception: object) -> None:
        if self._need_restore:
            self._average.restore()


def _refuse_static(parameters: object, thres_steps: object) -> None:
    """Refuse the static-graph class's arguments: its first is the decay, and the step is a tensor."""
    if isinstance(parameters, int | float):
        raise ConfigError(
            f"parameters={parameters}: unlike in a static graph, the layer or its parameters come first: "
            f"ExponentialMovingAverage(layer, decay={parameters})."
        )
    if not isinstance(thres_steps, bool | None):
        raise ConfigError(
            f"thres_steps is a {type(thres_steps).__name__}: must be True or False. Steps are counted here, "
            "so thres_steps=True gives the schedule min(decay, (1+t)/(10+t))."
        )


def _refuse_other(verb: str, executor: object) -> None:
    if not isinstance(executor, Executor | None):
        raise ConfigError(
            f"{verb}({executor!r}): the first argument is the static graph's executor, which may be omitted. "
            "Write apply(need_restore=False) by name."
        )


class Parameters(nn.Layer):
    """A layer that only contains parameters, under Paddle's names.

    Raises:
        ConfigError: one of them is not a parameter, or two have one name.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        for parameter in parameters:
            if not isinstance(parameter, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(
                    f"parameters holds a {type(parameter).__name__}: give layer.parameters(), or the layer."
                )
            # Directly, because add_parameter refuses names with dots, which all of Paddle's have.
            if self._parameters.setdefault(parameter.name, parameter) is not parameter:
                raise ConfigError(
                    f"parameters holds two tensors named {parameter.name!r}: give the layer instead, "
                    "whose names differ."
                )
