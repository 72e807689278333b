"""Following the steps of PyTorch's optimizers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from polyak._core.optimizer_hook import Attachment
from polyak.errors import ConfigError


class Steps(Protocol):
    """Updates that run concurrently with training, and so must wait before an optimizer's step."""

    def guard(self, guards: int) -> None: ...

    def before_step(self) -> None: ...

    def capturing(self) -> bool: ...


def follow(steps: Steps, attachment: Attachment, optimizers: Sequence[Optimizer]) -> list[Callable[[], None]]:
    """Call an attachment for each step that is taken; returns the function that undoes it."""
    hooks = [_StepHooks(steps, attachment, place, one) for place, one in enumerate(optimizers)]
    steps.guard(+1)
    return [lambda: steps.guard(-1), *(hook.remove for hook in hooks)]


class _StepHooks:
    """The hooks of one optimizer. Before its steps they wait for updates in flight."""

    def __init__(self, steps: Steps, attachment: Attachment, place: int, optimizer: Optimizer) -> None:
        self._steps, self._attachment, self._place = steps, attachment, place
        self._running = 0  # hooked step() methods, one inside the other
        self._hooks = (
            optimizer.register_step_pre_hook(self._begins),
            optimizer.register_step_post_hook(self._ends),
        )

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begins(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A step that raised does not count as one around this step.
        self._running = self._running + 1 if self._running and _inside_a_step() else 1
        if self._running == 1:
            self._attachment.before(self._place)
            self._steps.before_step()

    def _ends(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running -= 1
        if self._running == 0 and not self._skipped(optimizer):
            self._attachment.after(self._place)

    def _skipped(self, optimizer: Optimizer) -> bool:
        """Whether a GradScaler made a fused optimizer skip the step, inside its kernel."""
        found: object = getattr(optimizer, "found_inf", None)  # set by GradScaler for fused optimizers only
        if not isinstance(found, Tensor):
            return bool(found)  # a number if the scaler checked no gradients
        if self._steps.capturing():
            raise ConfigError(
                "attach: in a CUDA graph it cannot be read whether the GradScaler lets "
                f"{type(optimizer).__name__} step. Capture a step without a scaler (bfloat16 needs none), or "
                "remove() the handle and call ema.update() after graph.replay()."
            )
        return bool(found.item())


def check_hooked(optimizer: object) -> None:
    """Check that an optimizer's steps call hooks.

    Raises:
        ConfigError: it is not an optimizer, or a wrapper that did not call ``Optimizer.__init__``.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"attach: {name} is not a torch.optim.Optimizer. {_CURE}")
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

    torch calls the hooks in both once an optimizer of the parent class was created.
    """
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    hooked, outer = frame.f_code, frame.f_back
    while outer is not None and outer.f_code is not hooked:
        outer = outer.f_back
    return outer is not None
