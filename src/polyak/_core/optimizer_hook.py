"""Updating after each step of an optimizer, or of several that form one training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, Generic, TypeVar, cast
from weakref import ref

from polyak._core.tensor_map import TensorMap
from polyak._core.tensors import T, TensorOps, Traces
from polyak.errors import ConfigError, PlanError

OptimizerT = TypeVar("OptimizerT")

_OFTEN = 3  # writes that mean training: loading or broadcasting weights writes them once or twice
_SAMPLED = 3  # parameters whose values are compared, the smallest


class MissedStepDetector(Generic[T]):
    """Detects that parameters are trained although the attached optimizers take no step.

    Nothing is recorded per step. Two checks in a row without a step between them are compared: parameters
    that were written repeatedly, or have other values and gradients, were trained. It misses fused
    optimizers, whose writes PyTorch does not count, if gradients are set to None before each check.

    Args:
        parameters: of the optimizers.
        values: of these parameters, where they are sharded those that are here.
        ops: the framework's tensors.
    """

    def __init__(self, parameters: Sequence[T], values: Sequence[T], ops: TensorOps[T]) -> None:
        self._parameters, self._ops = parameters, ops
        dense = [value for value in values if 0 not in value.shape]
        self._sample = sorted(dense, key=lambda value: prod(value.shape))[:_SAMPLED]
        self._seen: tuple[list[Traces], list[str]] | None = self._look()

    def detects(self, heard: bool) -> bool:
        """Whether they were trained since the last check, although no step was ``heard`` since."""
        before, self._seen = self._seen, None if heard else self._look()
        if before is None or self._seen is None:
            return False
        (then, old), (now, new) = before, self._seen
        often = any(b.writes - a.writes >= _OFTEN for a, b in zip(then, now, strict=True))
        return often or (old != new and any(trace.graded for trace in now))

    def _look(self) -> tuple[list[Traces], list[str]]:
        # As text, because NaN is not equal to itself.
        norms = list(map(repr, self._ops.squared_distances((p, None) for p in self._sample)))
        return [self._ops.traces(parameter) for parameter in self._parameters], norms


class Attachment:
    """Updates an EMA after each training step, one step of each optimizer, until ``remove()``.

    If one of them takes no step (a scaler skips it, or it steps every second time), the training step ends
    when another is about to step again.

    Args:
        optimizers: referenced weakly.
        update: updates the averages.
        witness: detects training without a step.
    """

    def __init__(
        self, optimizers: Sequence[object], update: Callable[[], None], witness: MissedStepDetector[Any]
    ) -> None:
        self._names = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
        self._optimizers = [ref(optimizer) for optimizer in optimizers]
        self._update, self._missed_steps = update, witness
        self._removed = True  # until start(): hooks left by an earlier interrupt do nothing
        self._undo: Sequence[Callable[[], None]] = ()
        self._stepped: set[int] = set()  # indices of the optimizers in the current training step
        self._heard = False  # some optimizer stepped since the last check
        self._said = False

    @property
    def over(self) -> bool:
        """Whether ``remove()`` was called or the optimizers were deleted."""
        return self._removed or all(optimizer() is None for optimizer in self._optimizers)

    @property
    def removed(self) -> bool:
        """Whether hooks are inactive: before ``start()``, or after ``remove()``."""
        return self._removed

    def start(self, undo: Sequence[Callable[[], None]] = ()) -> None:
        """Start following; ``remove()`` will call ``undo``."""
        self._undo, self._removed = undo, False

    def remove(self) -> None:
        """Stop following. A second call does nothing."""
        self._removed = True
        undo, self._undo = self._undo, ()
        for each in undo:
            each()

    def before(self, place: int) -> None:
        """An optimizer is about to step."""
        self._heard = True
        if not self._removed and place in self._stepped:
            self._count()

    def after(self, place: int) -> None:
        """An optimizer has stepped."""
        if self._removed:
            return
        self._stepped.add(place)
        if len(self._stepped) == len(self._optimizers):
            self._count()

    def refuse_update(self) -> None:
        """Refuse an update by the user, which would count steps twice.

        Raises:
            ConfigError: this is one.
        """
        if not self.over:
            raise ConfigError(
                f"update: this EMA is attached to {self._names} and updates itself after each step; another "
                "update would count it twice. Drop the call, or remove() the handle that attach returned."
            )

    def refuse_another(self) -> None:
        """Refuse a second attachment.

        Raises:
            ConfigError: this one is active.
        """
        if not self.over:
            raise ConfigError(
                f"attach: this EMA is attached to {self._names} already; twice would count steps twice. "
                "Optimizers that step together are attached together, attach([a, b]); to follow another one, "
                "remove() the handle that attach returned first."
            )

    def notice(self, step: int) -> None:
        """Warn once if parameters are trained without a step of the attached optimizers."""
        heard, self._heard = self._heard, False
        if not self._removed and self._missed_steps.detects(heard) and not self._said:
            warnings.warn(
                f"the parameters were trained, but attach saw no step of {self._names}: the "
                f"average is still that of step {step}. Attach the optimizer whose step() is really called "
                "(for SAM in two phases, its base_optimizer), or call ema.update() after each step instead.",
                stacklevel=3,
            )
            self._said = True
        self._said = self._said and not heard

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of an EMA is not attached: the optimizer's hooks call the original."""
        return type(None), ()

    def _count(self) -> None:
        self._stepped = set()
        self._update()


def as_several(optimizer: OptimizerT | Sequence[OptimizerT]) -> list[OptimizerT]:
    """The optimizers of one training step.

    Raises:
        ConfigError: there is none, or one is given twice.
    """
    several = cast("Sequence[OptimizerT]", optimizer if isinstance(optimizer, Sequence) else [optimizer])
    found = list(several)
    if not found or len({id(one) for one in found}) < len(found):
        raise ConfigError(f"attach({optimizer!r}): give an optimizer, or several different ones.")
    return found


def averaged_of(plan: TensorMap[T], optimizer: object, held: Iterable[T]) -> list[tuple[T, T]]:
    """The averaged parameters of an optimizer, and the values of each that are here.

    Raises:
        PlanError: there are none.
    """
    averaged = {id(tensor): entry.live for entry in plan.having("average") for tensor in entry.tensors}
    found = [(tensor, averaged[id(tensor)]) for tensor in held if id(tensor) in averaged]
    if not found:
        raise PlanError(
            f"attach: {type(optimizer).__name__} holds none of the averaged parameters: it trains another "
            "model or a copy of this one, keeps its own copies, or trains excluded or frozen parameters. "
            "Attach the one that trains this model, or call ema.update() after each step."
        )
    return found
