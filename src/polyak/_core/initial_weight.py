"""Warnings about using an average that is still mostly θ₀."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from polyak._core.track import Track
from polyak.schedules import Constant, Decay

MOSTLY = 0.5  # share of θ₀ above which an average reflects the start more than the training
EARLY = 100  # fewer steps are a sanity check, for which no warning is due
CURES = "polyak.Warmup(β) drops them at once, and polyak.HalfLife(share=0.05) has no β to choose"


def warn_if_mostly_initial(
    tracks: Mapping[str, Track[Any]], chosen: Track[Any], use: str, stacklevel: int
) -> None:
    """Warn, once for all tracks of an EMA, that a used one is mostly θ₀.

    A track is checked until it no longer is: the weight of θ₀ only falls, until a restart.

    Args:
        tracks: of the EMA.
        chosen: the track in use.
        use: the method that uses it.
        stacklevel: of the caller's caller.
    """
    if chosen.trusted or chosen.steps_averaged < EARLY:
        return
    pattern, weight = most_initial(chosen)
    if weight > MOSTLY:
        timeline = chosen.timelines[pattern]
        of_pattern = f" of {pattern}" if chosen.by_name else ""
        warnings.warn(
            f"{use}: {weight:.0%} of the average {chosen.name!r}{of_pattern} is still the weights it began "
            f"with, after {timeline.profile.steps:,} steps of {timeline.decay}{half_of_it(timeline.decay)}. "
            f"{CURES}.",
            stacklevel=stacklevel + 1,
        )
    for track in tracks.values() if weight > MOSTLY else (chosen,):
        track.trusted = True


def most_initial(track: Track[Any]) -> tuple[str, float]:
    """The pattern whose tensors are θ₀ most, and the weight of θ₀ in them; 0 where it is not known.

    A ``ByName`` that keeps some tensors as they were, by a decay of 1, means that, so they do not count.
    """
    weights = {
        pattern: timeline.profile.initial_weight if timeline.profile.known else 0.0
        for pattern, timeline in track.timelines.items()
        if not (track.by_name and timeline.decay == Constant(1))
    }
    return max(weights.items(), key=lambda item: item[1], default=("", 0.0))


def warn_if_older_than_the_run(tracks: Mapping[str, Track[Any]], steps: float) -> None:
    """Warn before training of the first constant decay that leaves an average mostly θ₀ at the end.

    Args:
        tracks: of a new EMA.
        steps: number of steps to average.
    """
    if not EARLY <= steps < math.inf:
        return
    for track, decay in [(one, line.decay) for one in tracks.values() for line in one.timelines.values()]:
        if not decay.constant or decay.unit != "steps" or (track.by_name and decay == Constant(1)):
            continue
        if (weight := decay(1) ** steps) > MOSTLY:
            warnings.warn(
                f"the average {track.name!r} will be older than the run: {weight:.0%} will still be the "
                f"weights it began with after {steps:,.0f} steps of {decay}{half_of_it(decay)}. {CURES}.",
                stacklevel=2,
            )
            for one in tracks.values():
                one.trusted = True
            return


def half_of_it(decay: Decay) -> str:
    """The time a constant decay takes to reduce the weight of θ₀ to a half, as the end of a sentence."""
    beta = decay(1) if decay.constant else 0.0
    if not 0 < beta < 1:
        return ""
    return f", which leaves half to them after {math.log(MOSTLY) / math.log(beta):,.0f} {decay.unit}"
