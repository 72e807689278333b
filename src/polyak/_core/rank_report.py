"""What this process says of its average to the other ranks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

from polyak._core.agreement import Held, Report
from polyak._core.average_set import AverageSet
from polyak._core.sharded_files import Piece
from polyak._core.tensors import T
from polyak._core.track import Track


def report_of(averages: AverageSet[Any, T], step: int, seed: int, digest: Callable[[T], str]) -> Report:
    """What this process says of the parameters' averages; buffers may differ, as DDP lets them.

    Args:
        averages: of this process.
        step: training steps so far.
        seed: of the averages.
        digest: of a tensor's bytes.
    """
    held: dict[str, Held] = {}
    entries = [entry for entry in averages.plan.having("average") if entry.kind == "parameter"]
    for track in averages.tracks.values():
        of_track = f" of {track.name!r}" if len(averages.tracks) > 1 else ""
        for entry in entries:
            parts = {"": track.tensors[entry.name], ", low part": track.residuals.get(entry.name)}
            for part, tensor in parts.items():
                if tensor is not None:
                    held[f"{entry.name}{of_track}{part}"] = _held(tensor, entry.piece, digest(tensor))
    return Report(step, seed, _histories(averages), held)


def report_of_pieces(
    averages: AverageSet[Any, T],
    step: int,
    seed: int,
    tensors: Mapping[str, T],
    pieces: Mapping[str, Piece[T]],
    squares: Mapping[str, tuple[float, float]],
) -> Report:
    """What this process says of the pieces it brings to a file.

    Args:
        averages: of this process.
        step: training steps so far.
        seed: of the averages.
        tensors: by their names in the file.
        pieces: where those that are pieces lie.
        squares: see ``Held``.
    """
    held = {
        name: _held(tensors[name], piece, squares=squares.get(name, (0.0, 0.0)))
        for name, piece in pieces.items()
    }
    return Report(step, seed, _histories(averages), held)


def _held(
    tensor: T, piece: Piece[T] | None, digest: str = "", squares: tuple[float, float] = (0.0, 0.0)
) -> Held:
    dtype, shape = str(tensor.dtype).rpartition(".")[2], tuple(tensor.shape)
    if piece is None:
        return Held(dtype, shape, (0,) * len(shape), shape, digest, squares)
    return Held(dtype, piece.whole, piece.offset, shape, digest, squares)


def _histories(averages: AverageSet[Any, Any]) -> dict[str, str]:
    return {name: _history(track) for name, track in averages.tracks.items()}


def _history(track: Track[Any]) -> str:
    """Schedules and profiles: in words, and as a digest, since the words are rounded."""
    exact = " ".join(
        f"{timeline.decay.to_config()} {timeline.profile.to_json()}" for timeline in track.timelines.values()
    )
    return f"{track.decay}, {track.summary} (history {zlib.crc32(exact.encode()):08x})"
