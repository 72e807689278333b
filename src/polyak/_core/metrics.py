"""The numbers of ``EMA.metrics``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from polyak._core.average_set import AverageSet
from polyak._core.tensors import T
from polyak._core.timeline import Timeline
from polyak.schedules.adaptive import Choice


def metrics_of(averages: AverageSet[Any, T], step: int, choice: Choice | None) -> dict[str, Any]:
    """The numbers of ``EMA.metrics``."""
    skipped, named = averages.updater.skipped()
    out: dict[str, Any] = {
        "step": step,
        "engine": averages.updater.name,
        "skipped": skipped,
        "skipped_tensors": named,
    }
    if choice is not None:
        out |= {"following": choice.following, "switches": choice.switches}
    for (name, track), distance in zip(averages.tracks.items(), distances(averages), strict=True):
        prefix = f"{name}/" if len(averages.tracks) > 1 else ""
        for pattern, timeline in track.timelines.items():
            of_pattern = f"{pattern}/" if track.by_name else ""
            out |= {prefix + of_pattern + key: value for key, value in numbers_of(timeline).items()}
        out[prefix + "distance"] = distance
    return out


def numbers_of(timeline: Timeline) -> dict[str, float]:
    """decay, mean_age, half_life and initial_weight of the tensors with one schedule."""
    profile = timeline.profile
    if not profile.known:  # resumed from a file that another function made
        return {"decay": timeline.beta} | dict.fromkeys(("mean_age", "half_life", "initial_weight"), math.nan)
    return {
        "decay": timeline.beta,
        "mean_age": profile.mean_age,
        "half_life": profile.half_life,
        "initial_weight": profile.initial_weight,
    }


def distances(averages: AverageSet[Any, T]) -> list[float]:
    """``‖avg-θ‖ / ‖θ‖`` of each track over all averaged elements, accumulated in float64."""
    names, tracks = list(averages.first.tensors), list(averages.tracks.values())
    lives = [averages.plan.entries[name].live for name in names]

    def pairs() -> Iterator[tuple[T, T | None]]:
        yield from ((live, None) for live in lives)
        for track in tracks:
            yield from ((track.value(name), live) for name, live in zip(names, lives, strict=True))

    squares = averages.ops.squared_distances(pairs())
    size, *moved = (sum(squares[i : i + len(names)]) for i in range(0, len(squares), len(names)))
    return [math.sqrt(each / size) if size else math.sqrt(each) for each in moved]
