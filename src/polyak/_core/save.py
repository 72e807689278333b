"""Saving averages: one plain safetensors file, or shards with an index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from polyak._core.average_set import AverageSet
from polyak._core.tensor_map import TensorMap
from polyak._core.tensors import T, TensorOps
from polyak._core.track import Track
from polyak._files.header import Header
from polyak._files.layout import Spec
from polyak._files.shards import write_sharded
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
    return Header(track.name, step, track.decay, track.profile, "average", run, dict(track.joined))


def raw_header(step: int, run: str) -> Header:
    """The header of a file of the model's own weights."""
    return Header("raw", step, COPY, Profile.raw(step), "raw", run)


def weights_of(
    averages: AverageSet[Any, T], track: Track[T] | None, step: int, run: str
) -> tuple[dict[str, T], Header]:
    """The weights of a track, or with None the model's own, and their header."""
    held: Mapping[str, T] = {} if track is None else averages.tensors_of(track)
    tensors = exported(averages.plan, held, averages.ops) | averages.extra_states()
    return tensors, raw_header(step, run) if track is None else track_header(track, step, run)


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


def save_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, T],
    metadata: Mapping[str, str],
    ops: TensorOps[T],
    max_shard_size: int | str | None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write tensors and their header; from a GPU one at a time.

    Args:
        path: the file.
        tensors: by name.
        metadata: for the header.
        ops: the framework's tensors.
        max_shard_size: see ``write_sharded``.
        check: called before the old file is replaced, which an exception prevents.

    Raises:
        CheckpointError: an error of the operating system. Nothing is changed then.
    """
    specs = {name: Spec(ops.dtype_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    # Aliases, since an average_parameters() block of another thread may move the live tensors.
    aliases = {name: ops.alias(tensor) for name, tensor in tensors.items()}

    def pieces(name: str) -> Iterator[NDArray[Any]]:
        yield ops.as_array(aliases[name])

    write_sharded(path, specs, metadata, pieces, max_shard_size, check)
