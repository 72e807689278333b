"""What an archive stores of an EMA: copies that no later update reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from polyak._core.average_set import AverageSet
from polyak._core.save import exported, raw_header, track_header
from polyak._core.tensors import T
from polyak._core.track import Track
from polyak._files.header import Header


class Captured(NamedTuple):
    """A moment of an average: arrays of its own, and what they are."""

    tensors: Mapping[str, NDArray[Any]]
    header: Header


def captured_track(
    averages: AverageSet[Any, T], track: Track[T], step: int, run: str, dtype: str
) -> Captured:
    """A track's averages, rounded, and the copied buffers as they are; not what the model never changes.

    Its header says how far the average was from the model's parameters and from what is stored of it,
    ``"apart": ‖avg-θ‖²`` and ``"rounded": ‖stored-avg‖²``: mixing snapshots well takes both.
    """
    ops = averages.ops
    saved = [entry for entry in averages.plan.entries.values() if entry.saved]
    averaged = [entry for entry in saved if entry.role == "average"]
    copied = [entry.name for entry in saved if entry.role == "copy"]
    tensors = {entry.name: ops.rounded(track.value(entry.name), dtype) for entry in averaged}
    parameters = [entry for entry in averaged if entry.kind == "parameter"]
    values = [track.value(entry.name) for entry in parameters]
    lives, stored = [e.live for e in parameters], [tensors[e.name] for e in parameters]
    apart = sum(ops.squared_distances(zip(values, lives, strict=True)))
    rounded = sum(ops.squared_distances(zip(values, stored, strict=True)))
    tensors |= {name: ops.on_host(averages.copies[name]) for name in copied}
    state = {
        "apart": apart,
        "rounded": rounded,
        "copied": copied,
        "shared": [entry.name for entry in saved if entry.role == "share"],
        "aliases": {alias: entry.name for entry in saved for alias in entry.aliases},
    }
    arrays = {name: ops.as_array(tensor) for name, tensor in tensors.items()}
    return Captured(arrays, replace(track_header(track, step, run), state=state))


def captured_model(averages: AverageSet[Any, T], step: int, run: str) -> Captured:
    """The model's own tensors, all of them, exactly."""
    ops = averages.ops
    tensors = exported(averages.plan, {}, ops)
    return Captured(
        {name: ops.as_array(ops.on_host(tensor)) for name, tensor in tensors.items()}, raw_header(step, run)
    )
