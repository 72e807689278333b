"""What an average can tell about itself while it runs."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from polyak.torch.averages import Averages
from polyak.torch.plan import Plan
from polyak.torch.track import Track


def of(averages: Averages, step: int) -> dict[str, Any]:
    """The numbers of ``EMA.metrics``."""
    skipped, named = averages.tally.read()
    out: dict[str, Any] = {
        "step": step,
        "engine": averages.engine,
        "skipped": skipped,
        "skipped_tensors": named,
    }
    for name, track in averages.tracks.items():
        prefix = f"{name}/" if len(averages.tracks) > 1 else ""
        out |= {prefix + key: value for key, value in of_track(track, averages.plan).items()}
    return out


def of_track(track: Track, plan: Plan) -> dict[str, float]:
    """decay, mean_age, half_life, initial_weight and distance of one average."""
    profile = track.profile
    return {
        "decay": track.beta,
        "mean_age": profile.mean_age,
        "half_life": profile.half_life,
        "initial_weight": profile.initial_weight,
        "distance": distance(track, plan),
    }


def distance(track: Track, plan: Plan) -> float:
    """``‖avg-θ‖ / ‖θ‖`` over all averaged elements, accumulated in float64."""
    apart, size = 0.0, 0.0
    with torch.no_grad():
        for name in track.tensors:
            average, live = track.value(name), plan.entries[name].live
            apart += squared_distance(average, live)
            size += _square(live.to(average.device, torch.promote_types(average.dtype, torch.float32)))
    return math.sqrt(apart / size) if size else math.sqrt(apart)


def squared_distance(average: Tensor, other: Tensor) -> float:
    """``‖average-other‖²`` of one tensor, taken in the wider of their dtypes and float32."""
    wide = torch.promote_types(average.dtype, torch.float32)
    return _square(average.to(wide) - other.to(average.device, wide))


def _square(tensor: Tensor) -> float:
    return float(cast(Tensor, tensor.norm()).item()) ** 2
