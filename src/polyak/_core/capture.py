"""Snapshots of an EMA for an archive: copies that later updates do not change."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic

from polyak._core.average_set import AverageSet
from polyak._core.save import Content, arrays_of, exported, raw_header, specs_of, track_header, writer
from polyak._core.sharded_files import Stream
from polyak._core.tensors import T, TensorOps
from polyak._core.track import Track
from polyak._dtypes import BY_NAME
from polyak._files.header import Header
from polyak._files.write import write_safetensors


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
        distances: ``‖avg-θ‖ / ‖θ‖`` of each parameter that is whole here, ``‖avg-θ‖`` where θ is 0.
        skipped: updates so far in which some θ was not finite.
        skipped_tensors: how many of them each tensor had.
    """

    apart: float = 0.0
    rounded: float = 0.0
    copied: Sequence[str] = ()
    shared: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    number: int = 0
    distances: Mapping[str, float] = field(default_factory=dict[str, float])
    skipped: int = 0
    skipped_tensors: Mapping[str, int] = field(default_factory=dict[str, int])

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
            distances=state.get("distances", {}),
            skipped=int(state.get("skipped", 0)),
            skipped_tensors=state.get("skipped_tensors", {}),
        )


@dataclass(frozen=True)
class Captured(Generic[T]):
    """A copy of an average at one step, in host memory; of a sharded one the pieces that are here."""

    content: Content[T]
    ops: TensorOps[T]
    stream: Stream[T] | None = None

    @property
    def header(self) -> Header:
        """Its description; the distances of a sharded average are known on rank 0."""
        header = self.content.header
        if self.stream is None or "apart" not in header.state:
            return header
        apart, rounded = self.stream.squares
        sums = {"apart": header.state["apart"] + apart, "rounded": header.state["rounded"] + rounded}
        return replace(header, state={**header.state, **sums})

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write a file; of a sharded average every rank calls this, and rank 0 writes."""
        specs, arrays = specs_of(self.content, self.ops), arrays_of(self.content, self.ops, self.stream)
        write = partial(write_safetensors, path, specs, metadata, arrays)
        writer(self.stream, write, self.content, path)()


def captured_track(
    averages: AverageSet[Any, T], track: Track[T], step: int, run: str, dtype: str
) -> Content[T]:
    """A track's averages, rounded, and exact copied buffers; without tensors that training never changes."""
    ops = averages.ops
    saved = [entry for entry in averages.plan.entries.values() if entry.saved]
    averaged = [entry for entry in saved if entry.role == "average"]
    copied = [entry.name for entry in saved if entry.role == "copy"]
    tensors = {entry.name: ops.rounded(track.value(entry.name), dtype) for entry in averaged}
    parameters = [entry for entry in averaged if entry.kind == "parameter"]
    values = [track.value(entry.name) for entry in parameters]
    lives, stored = [e.live for e in parameters], [tensors[e.name] for e in parameters]
    apart = ops.squared_distances(zip(values, lives, strict=True))
    sizes = ops.squared_distances((live, None) for live in lives)
    rounded = ops.squared_distances(zip(values, stored, strict=True))
    squares = dict(zip([e.name for e in parameters], zip(apart, rounded, strict=True), strict=True))
    tensors |= {name: ops.on_host(averages.copies[name]) for name in copied}
    pieces = {entry.name: entry.piece for entry in saved if entry.piece is not None and entry.name in tensors}
    here = [each for name, each in squares.items() if name not in pieces]
    relative = {
        entry.name: math.sqrt(moved / size) if size else math.sqrt(moved)
        for entry, moved, size in zip(parameters, apart, sizes, strict=True)
        if entry.name not in pieces
    }
    skipped, named = averages.updater.skipped()
    state = SnapshotState(
        apart=sum(each for each, _ in here),
        rounded=sum(each for _, each in here),
        copied=copied,
        shared=[entry.name for entry in saved if entry.role == "share"],
        aliases={alias: entry.name for entry in saved for alias in entry.aliases},
        # Five digits do for a plot; JSON has no NaN.
        distances={name: float(f"{x:.5g}") for name, x in relative.items() if math.isfinite(x)},
        skipped=skipped,
        skipped_tensors=dict(named),
    )
    header = replace(track_header(track, step, run), state=asdict(state))
    return Content(tensors, header, pieces, squares=squares)


def widened(content: Content[T], track: Track[T], names: Collection[str], ops: TensorOps[T]) -> Content[T]:
    """The same with these tensors in float32, since on some rank float16 would overflow."""
    wide = {name: ops.rounded(track.value(name), "float32") for name in names}
    rounded = ops.squared_distances((track.value(name), tensor) for name, tensor in wide.items())
    squares = {
        name: (content.squares[name][0], each)
        for name, each in zip(wide, rounded, strict=True)
        if name in content.squares
    }
    return replace(content, tensors={**content.tensors, **wide}, squares={**content.squares, **squares})


def wide_pieces(content: Content[T], ops: TensorOps[T]) -> list[str]:
    """The sharded tensors that are float32 here."""
    return [name for name in content.pieces if ops.dtype_of(content.tensors[name]) == BY_NAME["F32"]]


def captured_model(averages: AverageSet[Any, T], step: int, run: str) -> Content[T]:
    """Exact copies of all of the model's tensors."""
    ops, plan = averages.ops, averages.plan
    tensors = {name: ops.on_host(tensor) for name, tensor in exported(plan, {}, ops).items()}
    pieces = {name: piece for name, piece in plan.placed().items() if name in tensors}
    return Content(tensors, raw_header(step, run), pieces)
