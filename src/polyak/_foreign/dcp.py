"""Folders of ``torch.distributed.checkpoint``: a pickled ``.metadata`` and ``*.distcp`` files.

Each item of a ``.distcp`` file is a whole file of ``torch.save``, at an offset. A tensor sharded over ranks
is an item per chunk; the metadata gives their offsets in the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polyak._dtypes import Array, DType
from polyak._files.checkpoint import Checkpoint, ComputedTensor, LazyTensor
from polyak._files.source import Source, Where, inside, open_source
from polyak._foreign.flatten import check_size
from polyak._foreign.numpy_pickle import shape_of
from polyak._foreign.pickle_objects import Global, Makers, Record, recorded
from polyak._foreign.sections import Section
from polyak._foreign.torch_zip import DTYPES, layout, tree_of_zip
from polyak._foreign.unpickle import Stream, load
from polyak._type_guards import is_dict
from polyak.errors import CheckpointError

METADATA = ".metadata"
_CELLS = 1 << 22
_SMALL = 1 << 12  # bytes of a value that is read: a pickled number takes one thousand
_DEEPEST = 100  # keys that lead to an entry
_BYTES = np.dtype(np.uint8)


class _Chunk(NamedTuple):
    """A part of a tensor: its offset and shape, and a function that opens it."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    tensor: Callable[[], LazyTensor]


def read_folder(folder: Where) -> Checkpoint:
    """The tensors of a distributed checkpoint, whole."""
    with open_source(inside(folder, METADATA)) as source:
        metadata = load(Stream(source), _MAKERS)
    try:
        entries = dict(metadata.state["state_dict_metadata"])
        places = dict(metadata.state["storage_data"])
        stored = {_key(index): _attributes(info) for index, info in places.items()}
        names = sorted({_text(info["relative_path"]) for info in stored.values()})
        with ExitStack() as opened:
            files = {name: opened.enter_context(open_source(inside(folder, name))) for name in names}
            size = sum(file.size for file in files.values())
            tensors: dict[str, LazyTensor] = {}
            others: dict[str, Any] = {}
            for name, entry in entries.items():
                if entry.name == "TensorStorageMetadata":
                    tensors[_text(name)] = _tensor(name, _attributes(entry), stored, files)
                else:
                    info = stored.get((name, None))
                    others[_text(name)] = Unread(None if info is None else _section(info, files))
            tree = _nested(others | tensors, metadata.state.get("planner_data"))
            check_size(str(folder), tensors, size)
            opened.pop_all()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"{folder} is not a known distributed checkpoint: its {METADATA} is malformed ({error!r:.200})."
        ) from error
    return Checkpoint(str(folder), "dcp", tensors, others=tree, sources=tuple(files.values()))


@dataclass(frozen=True)
class Unread:
    """A value other than a tensor, left in its file: mostly optimizer settings, which can be very many."""

    section: Section | None

    def read(self, limit: int = _SMALL) -> Any:
        """The pickled value; None if it has more bytes than ``limit`` or cannot be read."""
        if self.section is None or self.section.size > limit:
            return None
        try:
            return tree_of_zip(self.section)
        except CheckpointError:
            return None


def _section(info: Mapping[str, Any], files: Mapping[str, Source]) -> Section:
    return Section(files[info["relative_path"]], int(info["offset"]), int(info["length"]))


def _nested(flat: Mapping[str, Any], paths: Any) -> dict[str, Any]:
    """The state dict before flattening, if the metadata gives the path of each entry.

    Lists become dicts with their indices as keys.
    """
    if not is_dict(paths):
        return dict(flat)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        path: Any = paths.get(name, (name,))
        *outer, last = [str(key) for key in path[:_DEEPEST]]
        place = nested
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value
    return nested


def _tensor(
    name: str, entry: Mapping[str, Any], stored: Mapping[Any, Any], files: Mapping[str, Source]
) -> LazyTensor:
    dtype = _dtype(name, entry["properties"])
    shape = shape_of(entry["size"], dtype)
    chunks: list[_Chunk] = []
    for chunk in map(_attributes, entry["chunks"]):
        offsets, sizes = shape_of(chunk["offsets"], dtype), shape_of(chunk["sizes"], dtype)
        info = stored[name, offsets]
        if info.get("transform_descriptors"):
            raise CheckpointError(f"{name} is compressed or encrypted, which is not supported")
        chunks.append(_Chunk(offsets, sizes, partial(_item, _section(info, files), sizes, dtype)))
    _check(name, shape, chunks)
    if len(chunks) == 1 and chunks[0].shape == shape:
        return chunks[0].tensor()

    def assembled() -> Array:
        array = np.empty(shape, dtype)
        for chunk in chunks:
            places = tuple(slice(at, at + n) for at, n in zip(chunk.offsets, chunk.shape, strict=True))
            array[places] = chunk.tensor().read()
        return array

    return ComputedTensor(dtype, shape, assembled)


def _item(section: Section, shape: tuple[int, ...], dtype: DType) -> LazyTensor:
    tensor = tree_of_zip(section)
    if not isinstance(tensor, LazyTensor) or tensor.shape != shape or tensor.dtype != dtype:
        raise CheckpointError(
            f"{section.name} does not hold the {dtype} {shape} that the metadata announces."
        )
    return tensor


def _check(name: str, shape: tuple[int, ...], chunks: list[_Chunk]) -> None:
    """Check that chunks fill the tensor exactly once: each cell of the grid of their edges has one."""
    for chunk in chunks:
        ends = [at + n for at, n in zip(chunk.offsets, chunk.shape, strict=True)]
        if len(ends) != len(shape) or any(map(int.__gt__, ends, shape)):
            raise CheckpointError(f"a chunk of {name} reaches from {chunk.offsets} to {ends}, beyond {shape}")
    cuts = [
        np.unique([0, n, *(c.offsets[d] for c in chunks), *(c.offsets[d] + c.shape[d] for c in chunks)])
        for d, n in enumerate(shape)
    ]
    if prod(len(cut) for cut in cuts) > _CELLS:
        raise CheckpointError(f"{name} is cut into more than {_CELLS:,} cells")
    covered = np.zeros([len(cut) - 1 for cut in cuts], bool)
    unfilled = CheckpointError(
        f"the chunks of {name} do not make up its shape {shape} without gap or overlap"
    )
    for chunk in chunks:
        ends = [at + n for at, n in zip(chunk.offsets, chunk.shape, strict=True)]
        edges = zip(cuts, chunk.offsets, ends, strict=True)
        cells = tuple(slice(*np.searchsorted(cut, (at, end))) for cut, at, end in edges)
        if covered[cells].any():  # at once: a million chunks over the same million cells would take days
            raise unfilled
        covered[cells] = True
    if not covered.all():
        raise unfilled


def _dtype(name: str, properties: Record) -> DType:
    state = properties.state  # a tuple that begins with the dtype, or a dict of attributes
    dtype = state["dtype"] if is_dict(state) else state[0]
    if not isinstance(dtype, Global) or dtype.name not in DTYPES:
        what = dtype if isinstance(dtype, Global) else "of no dtype"
        raise CheckpointError(f"{name} is {what}, which polyak does not read")
    return DTYPES[dtype.name]


def _attributes(record: Record) -> dict[str, Any]:
    if not is_dict(record.state):
        raise TypeError("an object has no attributes")
    return record.state  # no copy: a million records can share one state


def _key(index: Record) -> tuple[str, tuple[int, ...] | None]:
    attributes = _attributes(index)
    offset = attributes.get("offset")
    return _text(attributes["fqn"]), None if offset is None else shape_of(offset, _BYTES)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is no text")
    return value


_MEMORY_FORMAT = ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING")
_MAKERS: Makers = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): layout,
    _MEMORY_FORMAT: recorded(*_MEMORY_FORMAT),
}
