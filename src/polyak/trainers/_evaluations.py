"""The weights that a trainer evaluates, and the prefixes of their metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from polyak._core.track import Decays, named_decays
from polyak.errors import ConfigError
from polyak.schedules import Adaptive

Evaluate: TypeAlias = str | Sequence[str] | None
FOLLOWING = "following"  # whichever track an ``Adaptive`` follows at the time


def evaluable(decay: Decays) -> list[str]:
    """The names that ``evaluate`` may give besides "raw", the default first."""
    return [FOLLOWING] * isinstance(decay, Adaptive) + list(named_decays(decay))


def evaluations(evaluate: Evaluate, tracks: Iterable[str]) -> dict[str, str]:
    """The weights to evaluate, each with the prefix of its metrics.

    Metrics of the first have no prefix; others have ``raw/`` or ``ema=long/``. So a checkpoint callback that
    monitors ``val_loss`` or ``raw/val_loss`` keeps the best of one kind.

    Args:
        evaluate: a track or "raw"; several of them; "both" for the first track and "raw"; None for the
            first track.
        tracks: the names of the averages; see ``evaluable``.

    Returns:
        Prefixes by weights ("raw" or a track), the empty one first.

    Raises:
        ConfigError: ``evaluate`` is empty, or has an unknown or repeated name.

    Examples:
        >>> evaluations("both", ["average"])
        {'average': '', 'raw': 'raw/'}
        >>> evaluations(["short", "long"], ["short", "long"])
        {'short': '', 'long': 'ema=long/'}
    """
    names = list(tracks)
    if evaluate is None or evaluate == "both":
        chosen = names[:1] if evaluate is None else [names[0], "raw"]
    else:
        chosen = [evaluate] if isinstance(evaluate, str) else list(evaluate)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= {*names, "raw"}:
        known = ", ".join(map(repr, names))
        raise ConfigError(
            f"evaluate={evaluate!r}: must be {known}, 'raw', 'both' or a list of tracks and 'raw'."
        )
    first, *others = chosen
    return {first: "", **{one: "raw/" if one == "raw" else f"ema={one}/" for one in others}}
