"""Plain pickles, without the archive that ``torch.save`` makes: Paddle's, and tensors in ``.pkl`` files.

Pickled on its own, a tensor holds its storage as the bytes of a file of its own, in the layout torch had
before 1.6; those bytes are read where they are. The networks of StyleGAN, EDM and EDM2 are such pickles,
whose objects carry the source of their classes along; it is kept as text.
"""

from __future__ import annotations

from typing import Any, cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.source import Source
from polyak._foreign import paddle_pickle, torch_zip
from polyak._foreign.flatten import checkpoint_of
from polyak._foreign.numpy_pickle import ArraySlot, makers
from polyak._foreign.pickle_objects import Budget, Payload, Record
from polyak._foreign.sections import Memory, Section
from polyak._foreign.torch_zip import Storage, read_stream
from polyak._foreign.unpickle import Stream, load
from polyak.errors import CheckpointError

_STORAGE = 1 << 10  # bytes, at most, of the pickles that describe one storage


def read_pickle(source: Source) -> Checkpoint:
    """The tensors of a plain pickle.

    Raises:
        CheckpointError: it is damaged, or asks for a call.
    """
    stream = Stream(source)
    storages: list[Storage] = []

    def storage(data: Any) -> Storage:
        stream.spend(_STORAGE)
        if isinstance(data, Payload) and data.text:  # what is spelled otherwise cannot be read in place
            stream.spend(data.size)
            data = data.read()
        inner = isinstance(data, Payload)
        section = Section(source, data.offset, data.size) if inner else Memory(source.name, data)
        storages.append(_storage_in(section, stream.budget))
        return storages[-1]

    # A call is known by its name alone, so that each kind of pickle can hold what the others can.
    arrays: list[ArraySlot] = []
    known = torch_zip.MAKERS | paddle_pickle.MAKERS | _PERSISTENT | makers(arrays)
    tree = load(stream, known | {("torch.storage", "_load_from_bytes"): storage})
    if not storages:
        return paddle_pickle.weights_of(source, tree, arrays)
    return checkpoint_of(source, "pytorch", tree)


def _storage_in(source: Source, budget: Budget) -> Storage:
    held = read_stream(source, _STORAGE, budget).others
    if not isinstance(held, Storage):
        raise CheckpointError("a tensor's storage holds something else than one storage")
    return held


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
