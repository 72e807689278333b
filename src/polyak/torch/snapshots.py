"""What an archive stores of an EMA: copies that no later update reaches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from polyak.checkpoints.snapshots import Captured
from polyak.torch.averages import Averages
from polyak.torch.files import as_array, exported, header, raw_header
from polyak.torch.metrics import squared_distance
from polyak.torch.plan import Plan
from polyak.torch.track import Track


def of_track(averages: Averages, track: Track, step: int, run: str, dtype: str) -> Captured:
    """A track's averages, rounded, and the copied buffers as they are; not what the model never changes.

    Its header says how far the average was from the model's parameters and from what is stored of it,
    ``"apart": ‖avg-θ‖²`` and ``"rounded": ‖stored-avg‖²``: mixing snapshots well takes both.
    """
    saved = [entry for entry in averages.plan.entries.values() if entry.saved]
    averaged = [entry for entry in saved if entry.role == "average"]
    copied = [entry.name for entry in saved if entry.role == "copy"]
    apart, rounded = 0.0, 0.0
    with torch.no_grad():
        tensors = {entry.name: _rounded(track.value(entry.name), dtype) for entry in averaged}
        for entry in averaged:
            if entry.kind == "parameter":
                average = track.value(entry.name)
                apart += squared_distance(average, entry.live)
                rounded += squared_distance(average, tensors[entry.name])
        tensors |= {name: averages.copies[name].to("cpu", copy=True) for name in copied}
    state = {
        "apart": apart,
        "rounded": rounded,
        "copied": copied,
        "shared": [entry.name for entry in saved if entry.role == "share"],
        "aliases": {alias: entry.name for entry in saved for alias in entry.aliases},
    }
    arrays = {name: as_array(tensor) for name, tensor in tensors.items()}
    return Captured(arrays, replace(header(track, step, run), state=state))


def of_model(plan: Plan, step: int, run: str) -> Captured:
    """The model's own tensors, all of them, exactly."""
    arrays = {name: as_array(tensor.to("cpu", copy=True)) for name, tensor in exported(plan, {}).items()}
    return Captured(arrays, raw_header(step, run))


def _rounded(average: Tensor, dtype: str) -> Tensor:
    """A copy in ``dtype``; in float32 or wider where float16 has no number large enough."""
    if average.is_complex():
        return average.to("cpu", copy=True)
    asked: torch.dtype = getattr(torch, dtype)
    small = average.to("cpu", asked, copy=True)
    if asked == torch.float16 and not bool(small.isfinite().all()):
        return average.to("cpu", torch.float32, copy=True)
    return small
