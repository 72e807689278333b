"""What an average can tell about itself while it runs."""

from __future__ import annotations

import math
from typing import Any

from polyak.core.averages import Averages
from polyak.core.tensors import T
from polyak.core.track import Track


def of(averages: Averages[Any, T], step: int) -> dict[str, Any]:
    """The numbers of ``EMA.metrics``."""
    skipped, named = averages.skipped()
    out: dict[str, Any] = {
        "step": step,
        "engine": averages.engine,
        "skipped": skipped,
        "skipped_tensors": named,
    }
    for name, track in averages.tracks.items():
        prefix = f"{name}/" if len(averages.tracks) > 1 else ""
        out |= {prefix + key: value for key, value in of_track(averages, track).items()}
    return out


def of_track(averages: Averages[Any, T], track: Track[T]) -> dict[str, float]:
    """decay, mean_age, half_life, initial_weight and distance of one average."""
    profile = track.profile
    return {
        "decay": track.beta,
        "mean_age": profile.mean_age,
        "half_life": profile.half_life,
        "initial_weight": profile.initial_weight,
        "distance": distance(averages, track),
    }


def distance(averages: Averages[Any, T], track: Track[T]) -> float:
    """``‖avg-θ‖ / ‖θ‖`` over all averaged elements, accumulated in float64."""
    apart, size = 0.0, 0.0
    for name in track.tensors:
        average, live = track.value(name), averages.plan.entries[name].live
        apart += averages.kit.squared_distance(average, live)
        size += averages.kit.squared_distance(live, None)
    return math.sqrt(apart / size) if size else math.sqrt(apart)
