"""What becomes of an update when some θ is not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from polyak.errors import ConfigError, NonFiniteError

NonFinitePolicy: TypeAlias = Literal["skip", "raise", "ignore"]


def check_policy(policy: NonFinitePolicy) -> None:
    """Refuse a word that is no policy.

    Raises:
        ConfigError: it is none.
    """
    if policy not in ("skip", "raise", "ignore"):
        raise ConfigError(f'on_nonfinite={policy!r}: must be "skip", "raise" or "ignore".')


def check_start(policy: NonFinitePolicy, name: str, finite: Callable[[], bool]) -> None:
    """Refuse to begin an average with what no update could remove.

    Raises:
        NonFiniteError: it names the tensor.
    """
    if policy != "ignore" and not finite():
        raise NonFiniteError(
            f"{name} holds NaN, infinity or numbers beyond the storage's range. An average that begins with "
            "them keeps them for ever: initialise or load the model before averaging it, leave the tensor "
            'out with exclude=, or let it in with on_nonfinite="ignore".'
        )


def refuse_nonfinite(bad: Sequence[str], step: int) -> None:
    """Refuse an update of tensors with elements that cannot be stored, if there are any.

    Raises:
        NonFiniteError: it names the first.
    """
    if bad:
        raise NonFiniteError(
            f"{bad[0]} is not finite, or beyond the storage's range, at step {step} ({len(bad)} tensors "
            'are). Nothing was averaged. on_nonfinite="skip" would keep the average of such elements.'
        )
