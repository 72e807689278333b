"""Following the steps of Paddle's optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, cast

from paddle import Tensor
from paddle.optimizer import Optimizer

from polyak._core.optimizer_hook import Attachment

_VERBS = ("step", "minimize")


def follow(attachment: Attachment, optimizers: Sequence[Optimizer]) -> Sequence[Callable[[], None]]:
    """Call an attachment for each step that is taken, also under a GradScaler.

    Paddle's optimizers have no hooks, so ``step`` and ``minimize`` of these objects are wrapped permanently:
    they may have been wrapped again since. A GradScaler calls them also for steps it skips, and stores its
    decision in the optimizer.
    """
    inside = False  # whether a step runs: minimize of some optimizers calls step

    def followed(place: int, optimizer: Optimizer, verb: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(verb)
        def taken(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside or attachment.removed:
                return verb(*args, **kwargs)
            attachment.before(place)
            inside = True
            try:
                result = verb(*args, **kwargs)
            finally:
                inside = False
            if not (attachment.removed or _skipped(optimizer)):
                attachment.after(place)
            return result

        return taken

    for place, optimizer in enumerate(optimizers):
        for verb in _VERBS:
            setattr(optimizer, verb, followed(place, optimizer, getattr(optimizer, verb)))
    return ()


def parameters_of(optimizer: Optimizer) -> Iterator[Tensor]:
    """The parameters that an optimizer trains, in groups or not."""
    for one in cast("list[Any]", optimizer._parameter_list or ()):  # pyright: ignore[reportPrivateUsage]
        yield from cast("list[Tensor]", one["params"] if isinstance(one, dict) else [one])


def _skipped(optimizer: Optimizer) -> bool:
    verdict = cast(object, optimizer._get_auxiliary_var("found_inf"))  # pyright: ignore[reportPrivateUsage]
    return bool(verdict)
