"""Plain pickles, without the archive that ``torch.save`` makes: Paddle's, and tensors in ``.pkl`` files.

Pickled on its own, a tensor holds its storage as the bytes of a file of its own, in the layout torch had
before 1.6; those bytes are read where they are. The networks of StyleGAN, EDM and EDM2 are such pickles,
whose objects carry the source of their classes along; it is kept as text.
"""

from __future__ import annotations

from typing import Any, cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.source import Source
from polyak._foreign import paddle_pickle as paddle
from polyak._foreign import torch_zip as pytorch
from polyak._foreign.numpy_pickle import ArraySlot, makers
from polyak._foreign.pickle_objects import Budget, Payload, Record
from polyak._foreign.unpickle import Stream, load
from polyak.errors import CheckpointError

_STORAGE = 1 << 10  # bytes, at most, of the pickles that describe one storage


def read_pickle(source: Source) -> Checkpoint:
    """The tensors of a plain pickle.

    Raises:
        CheckpointError: it is damaged, or asks for a call.
    """
    nested: list[Source] = []
    stream = Stream(source)

    def storage(data: Any) -> Any:
        stream.spend(_STORAGE)
        if isinstance(data, Payload) and data.text:  # what is spelled otherwise cannot be read in place
            stream.spend(data.size)
            data = data.read()
        nested.append(_Within(source, data) if isinstance(data, Payload) else _Memory(source.name, data))
        return _storage_in(nested[-1], stream.budget)

    # A call is answered by its name alone, so that each kind of pickle can hold what the others can.
    arrays: list[ArraySlot] = []
    known = pytorch.MAKERS | paddle.MAKERS | _PERSISTENT | makers(arrays)
    tree = load(stream, known | {("torch.storage", "_load_from_bytes"): storage})
    if not nested:
        return paddle.weights_of(source, tree, arrays)
    return pytorch.weights_of(source, tree)


def _storage_in(source: Source, budget: Budget) -> pytorch.Storage:
    held = pytorch.read_stream(source, _STORAGE, budget).others
    if not isinstance(held, pytorch.Storage):
        raise CheckpointError("a tensor's storage holds something else than one storage")
    return held


class _Within(Source):
    """Some bytes of another source."""

    def __init__(self, outer: Source, part: Payload) -> None:
        self.name, self.size = outer.name, part.size
        self._outer, self._start = outer, part.offset

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        self._outer.read_into(self._start + offset, buffer)
        return len(buffer)

    def close(self) -> None:
        pass  # the outer source is closed by whom it belongs to


class _Memory(Source):
    """A few bytes that the pickle held itself."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self._data = name, len(data), data

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self._data[offset : offset + len(buffer)]
        return len(buffer)

    def close(self) -> None:
        pass


def _described(meta: Any) -> Record:
    """An object that says of what class it is; its attributes are the state."""
    if not isinstance(meta, dict):
        raise CheckpointError("a persistent object is not described by a dict")
    kept = cast("dict[Any, Any]", meta)
    name = kept.get("class_name")
    if not isinstance(name, str):
        raise CheckpointError("a persistent object does not name its class")
    return Record("torch_utils.persistence", name, (kept.get("module_src"),), kept.get("state"))


_PERSISTENT = {("torch_utils.persistence", "_reconstruct_persistent_obj"): _described}
