"""Following an optimizer's own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from polyak.errors import ConfigError
from polyak.torch.track import Track


def after_each_step(optimizer: Optimizer, update: Callable[[], None]) -> RemovableHandle:
    """Call ``update`` after each step that is really taken, also by a fused optimizer under a GradScaler."""

    def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = getattr(optimizer, "found_inf", None)  # set by GradScaler for fused optimizers only
        if found is None or not found.item():
            update()

    return optimizer.register_step_post_hook(after_step)


def check_counts_steps(track: Track) -> None:
    """Refuse a decay in samples or tokens, which an optimizer does not know.

    Raises:
        ConfigError: it is one.
    """
    unit = track.decay.unit
    if unit != "steps":
        raise ConfigError(
            f"track {track.name!r} counts {unit}, which an optimizer does not know: "
            f"call ema.update({unit}=…) yourself."
        )
