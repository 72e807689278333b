"""A word on averages that are still mostly the weights they began with, before somebody uses one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from polyak._core.track import Track
from polyak.schedules import Decay

MOSTLY = 0.5  # of the weight: with more on θ₀ an average says more of the start than of the training
EARLY = 100  # steps before which nobody expects otherwise: a sanity check, a first look
CURES = "polyak.Warmup(β) drops them at once, and polyak.HalfLife(share=0.05) has no β to choose"


def warn_if_mostly_initial(
    tracks: Mapping[str, Track[Any]], chosen: Track[Any], use: str, stacklevel: int
) -> None:
    """Warn, once for all tracks of an EMA, that one is used which is mostly θ₀.

    A track is asked until it is not: what θ₀ weighs only ever falls, until a restart.

    Args:
        tracks: of the EMA.
        chosen: the one that is used.
        use: what is done with it.
        stacklevel: of the caller's caller.
    """
    if chosen.trusted or chosen.steps_averaged < EARLY:
        return
    profile = chosen.profile
    weight = profile.initial_weight if profile.known else 0.0
    if weight > MOSTLY:
        warnings.warn(
            f"{use}: {weight:.0%} of the average {chosen.name!r} is still the weights it began with, after "
            f"{profile.steps:,} steps of {chosen.decay}{half_of_it(chosen.decay)}. {CURES}.",
            stacklevel=stacklevel + 1,
        )
    for track in tracks.values() if weight > MOSTLY else (chosen,):
        track.trusted = True


def warn_if_older_than_the_run(tracks: Mapping[str, Track[Any]], steps: float) -> None:
    """Warn, before the training, of the first constant decay that will leave an average mostly θ₀ at its end.

    Args:
        tracks: of an EMA that was just made.
        steps: that it will average.
    """
    for track in tracks.values():
        decay = track.decay
        if not decay.constant or decay.unit != "steps" or not EARLY <= steps < math.inf:
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
    """How long a constant decay takes to leave half of the weight to θ₀, as the end of a sentence."""
    beta = decay(1) if decay.constant else 0.0
    if not 0 < beta < 1:
        return ""
    return f", which leaves half to them after {math.log(MOSTLY) / math.log(beta):,.0f} {decay.unit}"
