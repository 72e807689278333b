"""Comparing two metrics, of which the larger or the smaller is better."""

from __future__ import annotations

import math
from typing import Literal, SupportsFloat, TypeAlias

from polyak.errors import ConfigError

Mode: TypeAlias = Literal["max", "min"]


def check_mode(mode: str) -> None:
    """Refuse anything but "max" and "min"."""
    if mode not in ("max", "min"):
        raise ConfigError(f'mode={mode!r}: must be "max" (larger is better) or "min".')


def check_min_gain(min_gain: float) -> None:
    """Refuse a gain that is negative or not finite."""
    if not (math.isfinite(min_gain) and min_gain >= 0):
        raise ConfigError(f"min_gain={min_gain}: must be a finite number, at least 0.")


def as_number(name: str, metric: SupportsFloat) -> float:
    """One number, also in a tensor of one element.

    Raises:
        ConfigError: it is none.
    """
    try:
        return float(metric)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        # The last two come from tensors of several elements, of torch and of Paddle.
        raise ConfigError(f"{name}={metric!r}: must be one number.") from error


def gain(new: float, best: float, mode: Mode) -> float:
    """The improvement: ``new - best``, or ``best - new`` where a smaller metric is better.

    It is the difference of the decimals that the two are written as, so that 0.94 beats 0.93 by 0.01.

    Examples:
        >>> gain(0.94, 0.93, "max"), 0.94 - 0.93
        (0.01, 0.009999999999999898)
    """
    from decimal import Decimal  # a training run needs none

    difference = Decimal(repr(float(new))) - Decimal(repr(float(best)))
    return float(difference if mode == "max" else -difference)
