"""Following the steps of Paddle's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, cast

from paddle import Tensor
from paddle.optimizer import Optimizer

from polyak._core.optimizer_hook import Attachment as BaseAttachment
from polyak._core.optimizer_hook import Witness

_VERBS = ("step", "minimize")


class Attachment(BaseAttachment):
    """Calls ``update`` after each step that is really taken, also under a GradScaler.

    Paddle's optimizers have no hooks, so ``step`` and ``minimize`` of these objects are wrapped, for good:
    somebody else may have wrapped them since. A GradScaler calls them also for steps it skips, and leaves its
    verdict with the optimizer.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], update: Callable[[], None], witness: Witness[Tensor]
    ) -> None:
        super().__init__(optimizers, update, witness)
        self._inside = False  # a step: minimize of some optimizers calls step
        for place, optimizer in enumerate(optimizers):
            for verb in _VERBS:
                setattr(optimizer, verb, self._followed(place, optimizer, getattr(optimizer, verb)))

    def _followed(self, place: int, optimizer: Optimizer, verb: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(verb)
        def taken(*args: Any, **kwargs: Any) -> Any:
            if self._inside or self._removed:
                return verb(*args, **kwargs)
            self.before(place)
            self._inside = True
            try:
                result = verb(*args, **kwargs)
            finally:
                self._inside = False
            if not (self._removed or _skipped(optimizer)):
                self.after(place)
            return result

        return taken


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The parameters that an optimizer trains, in groups or not."""
    for one in cast("list[Any]", optimizer._parameter_list or ()):  # pyright: ignore[reportPrivateUsage]
        yield from cast("list[Tensor]", one["params"] if isinstance(one, dict) else [one])


def _skipped(optimizer: Optimizer) -> bool:
    verdict = cast(object, optimizer._get_auxiliary_var("found_inf"))  # pyright: ignore[reportPrivateUsage]
    return bool(verdict)
