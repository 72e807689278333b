"""Following an optimizer's own steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from paddle.optimizer import Optimizer

_VERBS = ("step", "minimize")


class Attachment:
    """Calls ``update`` after each step that is really taken, also under a GradScaler.

    Paddle's optimizers have no hooks, so ``step`` and ``minimize`` of this one object are wrapped. A
    GradScaler calls them also for steps it skips, and leaves its verdict with the optimizer.
    """

    def __init__(self, optimizer: Optimizer, update: Callable[[], None]) -> None:
        self._optimizer, self._update = optimizer, update
        self._following = True
        for verb in _VERBS:
            setattr(optimizer, verb, self._followed(getattr(optimizer, verb)))

    def remove(self) -> None:
        """No longer follow the optimizer. A second call does nothing."""
        # The wrappers stay: somebody else may have wrapped them since.
        self._following = False

    def _followed(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(verb)
        def taken(*args: Any, **kwargs: Any) -> Any:
            result = verb(*args, **kwargs)
            if self._following and not _skipped(self._optimizer):
                self._update()
            return result

        return taken


def _skipped(optimizer: Optimizer) -> bool:
    verdict = cast(object, optimizer._get_auxiliary_var("found_inf"))  # pyright: ignore[reportPrivateUsage]
    return bool(verdict)
