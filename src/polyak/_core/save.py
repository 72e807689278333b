"""Saving averages: one plain safetensors file, or shards with an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic

from numpy.typing import NDArray

from polyak._core.agreement import Report
from polyak._core.average_set import AverageSet
from polyak._core.sharded_files import Load, Piece, Ranks, Stream
from polyak._core.tensor_map import TensorMap
from polyak._core.tensors import T, TensorOps
from polyak._core.track import Track
from polyak._files.header import Header, Rule
from polyak._files.layout import Spec
from polyak._files.shards import write_sharded
from polyak._files.write import Pieces, sweep
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import Profile
from polyak.schedules.profile import COPY

# Endings of other formats: a file under such a name would be opened by the wrong reader.
_OTHERS = frozenset(
    f".{ending}"
    for line in (
        "pt pth bin ckpt tar pkl pickle npz npy json msgpack",
        "pdparams pdopt pdema keras h5 hdf5 gguf onnx",
    )
    for ending in line.split()
)


def check_name(path: str | os.PathLike[str]) -> None:
    """Check that the suffix is not that of another format.

    Raises:
        ConfigError: it is.
    """
    name = Path(os.fspath(path))
    if name.suffix.lower() in _OTHERS:
        raise ConfigError(
            f"path={str(path)!r}: polyak writes safetensors, which no reader of {name.suffix} files opens. "
            f"Name it {name.with_suffix('.safetensors').name!r}; `polyak convert` makes other formats of it."
        )


def track_header(track: Track[Any], step: int, run: str) -> Header:
    """The header of a track's file."""
    joined, rules = dict(track.joined), list[Rule]()
    for pattern, timeline in track.timelines.items():
        tensors = tuple([name for name, its in track.patterns.items() if its == pattern])
        rules.append(Rule(pattern, timeline.decay, timeline.profile, tensors))
    if track.by_name:
        return Header(track.name, step, None, None, "average", run, joined, rules=tuple(rules))
    return Header(track.name, step, rules[0].decay, rules[0].profile, "average", run, joined)


def raw_header(step: int, run: str) -> Header:
    """The header of a file of the model's own weights."""
    return Header("raw", step, COPY, Profile.raw(step), "raw", run)


@dataclass(frozen=True)
class Content(Generic[T]):
    """What this process brings to a file.

    tensors: by their names there; of a sharded tensor the piece that is here.
    header: the file's description.
    pieces: where the pieces of sharded tensors lie, by the names in the file.
    check: raises CheckpointError if the tensors were changed since they were looked up.
    squares: of the pieces, in a snapshot; see ``Held``.
    """

    tensors: Mapping[str, T]
    header: Header
    pieces: Mapping[str, Piece[T]]
    check: Callable[[], None] = lambda: None
    squares: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])


def weights_of(averages: AverageSet[Any, T], track: Track[T] | None, step: int, run: str) -> Content[T]:
    """The weights of a track, or with None the model's own, and their header."""
    held: Mapping[str, T] = {} if track is None else averages.tensors_of(track)
    tensors = exported(averages.plan, held, averages.ops) | averages.extra_states()
    header = raw_header(step, run) if track is None else track_header(track, step, run)
    return Content(
        tensors, header, {name: one for name, one in averages.plan.placed().items() if name in tensors}
    )


def exported(plan: TensorMap[T], held: Mapping[str, T], ops: TensorOps[T]) -> dict[str, T]:
    """A model's ``state_dict`` with a track's tensors in place of its own, without wrapper prefixes.

    Tied tensors appear once per name, so that a strict ``load_state_dict`` finds all names.

    Raises:
        CheckpointError: the file format has no name for a tensor.
    """
    tensors: dict[str, T] = {}
    for entry in plan.entries.values():
        if entry.saved:
            tensor = held.get(entry.name, entry.live)
            tensors |= dict.fromkeys(entry.names, tensor)
    for name, tensor in tensors.items():
        try:
            ops.dtype_of(tensor)
        except TypeError as error:
            raise CheckpointError(
                f"{name} is {error}, for which the safetensors format has no name. Nothing was written; "
                "state_dict(), saved with the framework's own function, keeps it exactly."
            ) from error
    return tensors


def specs_of(content: Content[T], ops: TensorOps[T]) -> dict[str, Spec]:
    """Dtypes and whole shapes."""
    shapes = {name: content.pieces[name].whole for name in content.pieces}
    return {
        name: Spec(ops.dtype_of(tensor), shapes.get(name, tuple(tensor.shape)))
        for name, tensor in content.tensors.items()
    }


def arrays_of(content: Content[T], ops: TensorOps[T], stream: Stream[T] | None) -> Pieces:
    """The values of each tensor; from a GPU one at a time, of sharded ones block by block."""
    # Aliases, since an average_parameters() block of another thread may move the live tensors.
    aliases = {name: ops.alias(tensor) for name, tensor in content.tensors.items()}

    def arrays(name: str) -> Iterator[NDArray[Any]]:
        if stream is None or name not in content.pieces:
            yield ops.as_array(aliases[name])
        else:
            yield from map(ops.as_array, stream.rows(name))

    return arrays


def opened(
    ranks: Ranks[T] | None, make: Callable[[], Content[T]], report: Callable[[Content[T]], Report]
) -> tuple[Content[T], Stream[T] | None]:
    """The content of a file, and the stream of its pieces if several ranks hold them.

    Args:
        ranks: that hold the average; None for this process alone.
        make: makes the content. If it raises on one rank, all raise.
        report: on the pieces in it.
    """
    if ranks is None:
        return make(), None
    made: list[Content[T]] = []

    def load() -> Load[T]:
        content = make()
        made.append(content)
        return Load({name: content.tensors[name] for name in content.pieces}, report(content), content.check)

    stream = ranks.stream(load)
    return made[0], stream


def writer(
    stream: Stream[T] | None,
    write: Callable[[Callable[[], None]], None],
    content: Content[T],
    path: str | os.PathLike[str] | None,
) -> Callable[[], None]:
    """Writes the file, given a function that takes what to call before the old file is replaced."""
    if stream is None:
        return partial(write, content.check)

    def write_or_tidy() -> None:
        try:
            stream.write(write)
        except CheckpointError:
            if path is not None:  # what rank 0 left if it was killed, where this rank sees it
                sweep(Path(os.path.realpath(path)))
            raise

    return write_or_tidy


def save_file(
    path: str | os.PathLike[str],
    content: Content[T],
    ops: TensorOps[T],
    max_shard_size: int | str | None,
    stream: Stream[T] | None,
    confirm: Callable[[], None],
) -> None:
    """Write tensors and their header.

    Args:
        path: the file.
        content: its tensors.
        ops: the framework's tensors.
        max_shard_size: see ``write_sharded``.
        stream: brings the pieces of other ranks.
        confirm: called before the old file is replaced, which an exception prevents.

    Raises:
        CheckpointError: an error of the operating system. Nothing is changed then.
    """
    specs, arrays = specs_of(content, ops), arrays_of(content, ops, stream)
    write_sharded(path, specs, content.header.to_metadata(), arrays, max_shard_size, confirm)
