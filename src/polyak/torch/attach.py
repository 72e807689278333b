"""Following an optimizer's own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.optim import Optimizer


class Steps(Protocol):
    """What must hear of the steps of an optimizer besides ``update``."""

    def guard(self, guards: int) -> None: ...

    def before_step(self) -> None: ...


class Attachment:
    """Calls ``update`` after each step that is really taken, also by a fused optimizer under a GradScaler.

    Before each step, updates still running beside the training are waited for.
    """

    def __init__(self, optimizer: Optimizer, update: Callable[[], None], steps: Steps) -> None:
        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            steps.before_step()

        def after(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = getattr(optimizer, "found_inf", None)  # set by GradScaler for fused optimizers only
            if found is None or not found.item():
                update()

        self._hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        self._steps = steps
        steps.guard(+1)

    def remove(self) -> None:
        """No longer follow the optimizer. A second call does nothing."""
        if self._hooks:
            self._steps.guard(-1)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
