"""An average that follows the steps of an optimizer, or of several that make one training step together."""

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

_OFTEN = 3  # loading or broadcasting weights writes them once or twice, training again and again
_SAMPLED = 3  # parameters whose values are looked at, the smallest there are


class MissedStepDetector(Generic[T]):
    """Notices that parameters are trained though no step of the attached optimizers is seen.

    Nothing is recorded per step. Two looks in a row between which no step was seen are compared: parameters
    that were written again and again, or have other values and gradients, were trained. It misses fused
    optimizers, which PyTorch does not count as writing, where gradients are set to None before each look.

    Args:
        parameters: those the optimizers are to train.
        ops: the framework's tensors.
    """

    def __init__(self, parameters: Sequence[T], ops: TensorOps[T]) -> None:
        self._parameters, self._ops = parameters, ops
        dense = [parameter for parameter in parameters if 0 not in parameter.shape]
        self._sample = sorted(dense, key=lambda parameter: prod(parameter.shape))[:_SAMPLED]
        self._seen: tuple[list[Traces], list[str]] | None = self._look()

    def detects(self, heard: bool) -> bool:
        """Whether they were trained since the last look, although no step was ``heard`` of since."""
        before, self._seen = self._seen, None if heard else self._look()
        if before is None or self._seen is None:
            return False
        (then, old), (now, new) = before, self._seen
        often = any(b.writes - a.writes >= _OFTEN for a, b in zip(then, now, strict=True))
        return often or (old != new and any(trace.graded for trace in now))

    def _look(self) -> tuple[list[Traces], list[str]]:
        # As text, in which NaN is equal to itself.
        norms = list(map(repr, self._ops.squared_distances((p, None) for p in self._sample)))
        return [self._ops.traces(parameter) for parameter in self._parameters], norms


class Attachment:
    """Updates an EMA after each training step, a step of each of some optimizers, until ``remove()``.

    Where one of them stands by (a scaler skips its step, or it acts on every second one), the training step
    ends when another is about to step again.

    Args:
        optimizers: not kept alive by this.
        update: takes the parameters into the averages.
        witness: of the parameters they train.
    """

    def __init__(
        self, optimizers: Sequence[object], update: Callable[[], None], witness: MissedStepDetector[Any]
    ) -> None:
        self._names = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
        self._optimizers = [ref(optimizer) for optimizer in optimizers]
        self._update, self._missed_steps = update, witness
        self._removed = True  # until start(): an interrupt before that leaves hooks that do nothing
        self._undo: Sequence[Callable[[], None]] = ()
        self._stepped: set[int] = set()  # of the optimizers, by place, in the present training step
        self._heard = False  # some optimizer stepped since the last look
        self._said = False

    @property
    def over(self) -> bool:
        """Whether nothing is followed any more: ``remove()`` was called, or the optimizers are gone."""
        return self._removed or all(optimizer() is None for optimizer in self._optimizers)

    @property
    def removed(self) -> bool:
        """Whether nothing is followed: ``start()`` was not called yet, or ``remove()`` was."""
        return self._removed

    def start(self, undo: Sequence[Callable[[], None]] = ()) -> None:
        """Follow from now on; ``remove()`` will call ``undo``."""
        self._undo, self._removed = undo, False

    def remove(self) -> None:
        """No longer follow. A second call does nothing."""
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
        """Refuse an update by hand, with which steps would be counted twice.

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
            ConfigError: this one is not over.
        """
        if not self.over:
            raise ConfigError(
                f"attach: this EMA is attached to {self._names} already; twice would count steps twice. "
                "Optimizers that step together are attached together, attach([a, b]); to follow another one, "
                "remove() the handle that attach returned first."
            )

    def notice(self, step: int) -> None:
        """Warn, once, where the training goes on without any step being seen."""
        heard, self._heard = self._heard, False
        if not self._removed and self._missed_steps.detects(heard) and not self._said:
            warnings.warn(
                f"the parameters were trained, but {self._names} took no step that attach could see: the "
                f"average is still that of step {step}. Attach the optimizer whose step() is really called "
                "(for SAM in two phases, its base_optimizer), or call ema.update() after each step instead.",
                stacklevel=3,
            )
            self._said = True
        self._said = self._said and not heard

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of an EMA follows nobody: the hooks are in the optimizer, and call the original."""
        return type(None), ()

    def _count(self) -> None:
        self._stepped = set()
        self._update()


def as_several(optimizer: OptimizerT | Sequence[OptimizerT]) -> list[OptimizerT]:
    """The optimizers that make one training step.

    Raises:
        ConfigError: there is none, or one is there twice.
    """
    several = cast("Sequence[OptimizerT]", optimizer if isinstance(optimizer, Sequence) else [optimizer])
    found = list(several)
    if not found or len({id(one) for one in found}) < len(found):
        raise ConfigError(f"attach({optimizer!r}): give an optimizer, or several different ones.")
    return found


def averaged_of(plan: TensorMap[T], optimizer: object, held: Iterable[T]) -> list[T]:
    """The averaged parameters among those that an optimizer holds.

    Raises:
        PlanError: none is.
    """
    averaged = {id(tensor) for entry in plan.having("average") for tensor in entry.tensors}
    found = [tensor for tensor in held if id(tensor) in averaged]
    if not found:
        raise PlanError(
            f"attach: {type(optimizer).__name__} holds none of the averaged parameters: it trains another "
            "model or a copy of this one, keeps copies of its own, or trains what is left out or frozen now. "
            "Attach the one that trains this model, or call ema.update() after each step."
        )
    return found
