"""Snapshots of an EMA for an archive: copies that later updates do not change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from polyak._core.average_set import AverageSet
from polyak._core.save import exported, raw_header, track_header
from polyak._core.tensors import T
from polyak._core.track import Track
from polyak._files.header import Header


@dataclass(frozen=True)
class SnapshotState:
    """The fields of a snapshot's header besides role, decay and profile.

    Args:
        apart: ``‖avg-θ‖²`` over the parameters; 0 if unknown.
        rounded: ``‖stored-avg‖²``; 0 if unknown. Mixing snapshots uses both.
        copied: tensors that are copies of the model's, not averages.
        shared: tensors that training does not change; stored in the base only.
        aliases: further names of tied tensors, each with the name it is stored under.
        number: of the snapshot in its run, from 1; 0 for the base.
    """

    apart: float = 0.0
    rounded: float = 0.0
    copied: Sequence[str] = ()
    shared: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    number: int = 0

    @classmethod
    def of(cls, header: Header) -> SnapshotState:
        """From a header; a distance that is not finite (a model with NaN) counts as unknown."""
        state = header.state
        apart, rounded = float(state.get("apart", 0.0)), float(state.get("rounded", 0.0))
        return cls(
            apart=apart if math.isfinite(apart) else 0.0,
            rounded=rounded if math.isfinite(rounded) else 0.0,
            copied=state.get("copied", ()),
            shared=state.get("shared", ()),
            aliases=state.get("aliases", {}),
            number=int(state.get("number", 0)),
        )


class Captured(NamedTuple):
    """A copy of an average at one step: arrays, and their header."""

    tensors: Mapping[str, NDArray[Any]]
    header: Header


def captured_track(
    averages: AverageSet[Any, T], track: Track[T], step: int, run: str, dtype: str
) -> Captured:
    """A track's averages, rounded, and exact copied buffers; without tensors that training never changes."""
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
    state = SnapshotState(
        apart=apart,
        rounded=rounded,
        copied=copied,
        shared=[entry.name for entry in saved if entry.role == "share"],
        aliases={alias: entry.name for entry in saved for alias in entry.aliases},
    )
    arrays = {name: ops.as_array(tensor) for name, tensor in tensors.items()}
    return Captured(arrays, replace(track_header(track, step, run), state=asdict(state)))


def captured_model(averages: AverageSet[Any, T], step: int, run: str) -> Captured:
    """Exact copies of all of the model's tensors."""
    ops = averages.ops
    tensors = exported(averages.plan, {}, ops)
    return Captured(
        {name: ops.as_array(ops.on_host(tensor)) for name, tensor in tensors.items()}, raw_header(step, run)
    )
