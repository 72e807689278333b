"""Following an optimizer's own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paddle.optimizer import Optimizer

_VERBS = ("step", "minimize")


class Attachment:
    """Calls ``update`` after each step that is really taken, also under a GradScaler.

    Paddle's optimizers have no hooks, so ``step`` and ``minimize`` of this one object are wrapped. A
    GradScaler calls them also for steps it skips, and leaves its verdict with the optimizer.
    """

    def __init__(self, optimizer: Optimizer, update: Callable[[], None]) -> None:
        self._optimizer = optimizer
        self._before = {verb: vars(optimizer).get(verb) for verb in _VERBS}
        for verb in _VERBS:
            setattr(optimizer, verb, _followed(optimizer, getattr(optimizer, verb), update))
        self._mine = {verb: vars(optimizer)[verb] for verb in _VERBS}

    def remove(self) -> None:
        """No longer follow the optimizer. A second call does nothing."""
        for verb, mine in self._mine.items():
            if vars(self._optimizer).get(verb) is mine:
                before = self._before[verb]
                if before is None:
                    delattr(self._optimizer, verb)
                else:
                    setattr(self._optimizer, verb, before)
        self._mine = {}


def _followed(
    optimizer: Optimizer, verb: Callable[..., Any], update: Callable[[], None]
) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        result = verb(*args, **kwargs)
        if not optimizer._get_auxiliary_var("found_inf"):  # pyright: ignore[reportPrivateUsage]
            update()
        return result

    return step
