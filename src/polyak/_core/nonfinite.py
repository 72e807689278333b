"""Policies for θ that is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from polyak.errors import ConfigError, NonFiniteError

NonFinitePolicy: TypeAlias = Literal["skip", "raise", "ignore"]


def check_policy(policy: NonFinitePolicy) -> None:
    """Check the name of a policy.

    Raises:
        ConfigError: it is unknown.
    """
    if policy not in ("skip", "raise", "ignore"):
        raise ConfigError(f'on_nonfinite={policy!r}: must be "skip", "raise" or "ignore".')


def refuse_start(bad: Sequence[str]) -> None:
    """Refuse to start averages from elements that cannot be stored.

    Raises:
        NonFiniteError: there are some; it names the first tensor.
    """
    if bad:
        raise NonFiniteError(
            f"{bad[0]} is not finite, or beyond the storage's range, where its average would begin "
            f'({len(bad)} tensors are). Initialise or load the model first. on_nonfinite="skip" would begin '
            "such elements with their first finite value."
        )


def refuse_nonfinite(bad: Sequence[str], step: int) -> None:
    """Refuse an update with elements that cannot be stored.

    Raises:
        NonFiniteError: there are some; it names the first tensor.
    """
    if bad:
        raise NonFiniteError(
            f"{bad[0]} is not finite, or beyond the storage's range, at step {step} ({len(bad)} tensors "
            'are). Nothing was averaged. on_nonfinite="skip" would keep the average of such elements.'
        )
