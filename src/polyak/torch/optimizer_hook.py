"""Following the steps of PyTorch's optimizers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from polyak._core.optimizer_hook import Attachment as BaseAttachment
from polyak._core.optimizer_hook import Witness
from polyak.errors import ConfigError


class Steps(Protocol):
    """What must hear of the steps of an optimizer besides ``update``."""

    def guard(self, guards: int) -> None: ...

    def before_step(self) -> None: ...

    def capturing(self) -> bool: ...


class Attachment(BaseAttachment):
    """Calls ``update`` after each step that is really taken, also by a fused optimizer under a GradScaler.

    Before each step, updates still running beside the training are waited for.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        update: Callable[[], None],
        witness: Witness[Tensor],
        steps: Steps,
    ) -> None:
        super().__init__(optimizers, update, witness)
        self._running = [0] * len(optimizers)  # hooked step() methods that run now, one inside the other
        self._steps = steps
        self._hooks = [
            hook
            for place, optimizer in enumerate(optimizers)
            for hook in (
                optimizer.register_step_pre_hook(partial(self._begins, place)),
                optimizer.register_step_post_hook(partial(self._ends, place)),
            )
        ]
        steps.guard(+1)

    def remove(self) -> None:
        if not self._removed:
            self._steps.guard(-1)
        super().remove()
        for hook in self._hooks:
            hook.remove()

    def _begins(
        self, place: int, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # What is left of a step that raised is no step around this one.
        self._running[place] = self._running[place] + 1 if self._running[place] and _inside_a_step() else 1
        if self._running[place] == 1:
            self.before(place)
            self._steps.before_step()

    def _ends(self, place: int, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running[place] -= 1
        if self._running[place] == 0 and not self._skipped(optimizer):
            self.after(place)

    def _skipped(self, optimizer: Optimizer) -> bool:
        """Whether a GradScaler had a fused optimizer take no step, which it does inside its kernel."""
        found: object = getattr(optimizer, "found_inf", None)  # set by GradScaler for fused optimizers only
        if not isinstance(found, Tensor):
            return bool(found)  # a number where the scaler had no gradients to look at
        if self._steps.capturing():
            raise ConfigError(
                "attach: in a CUDA graph nobody can read whether the GradScaler lets "
                f"{type(optimizer).__name__} step. Capture a step without a scaler (bfloat16 needs none), or "
                "remove() the handle and call ema.update() after graph.replay()."
            )
        return bool(found.item())


def check_hooked(optimizer: object) -> None:
    """Refuse what has steps that call no hooks.

    Raises:
        ConfigError: it is no optimizer, or a wrapper that did not call ``Optimizer.__init__``.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"attach: {name} is no torch.optim.Optimizer. {_CURE}")
    if not getattr(type(optimizer).step, "hooked", False):  # torch's own mark of a step that calls hooks
        raise ConfigError(
            f"attach: {name}.step() calls no hooks, because it never called Optimizer.__init__. {_CURE}"
        )


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that an optimizer trains."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


_CURE = (
    "Call ema.update() after each of its steps instead, or, if it changes no parameters itself, attach the "
    "optimizer inside it."
)


def _inside_a_step() -> bool:
    """Whether the hooked step that calls us runs inside another: ``step()`` that calls ``super().step()``.

    torch calls the hooks in both, as soon as anybody made an optimizer of the parent class.
    """
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    hooked, outer = frame.f_code, frame.f_back
    while outer is not None and outer.f_code is not hooked:
        outer = outer.f_back
    return outer is not None
