"""Plain pickles: Paddle's (``.pdparams``, ``.pdopt``, ``.pdema``), and those with tensors of torch.

Without the archive of ``torch.save``, a pickled tensor contains its storage as the bytes of an embedded file
in torch's layout before 1.6; those bytes are read in place. The networks of StyleGAN, EDM and EDM2 are such
pickles, whose objects include the source of their classes, which is never run.

``paddle.save`` pickles a dict of NumPy arrays. NumPy has no bfloat16, so Paddle writes such parameters as
uint16, which it uses for nothing else; they are read as bfloat16. Older files contain parameters above 4 GB
in slices, which are joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from polyak._dtypes import Array
from polyak._files.checkpoint import Checkpoint, ComputedTensor, LazyTensor
from polyak._files.source import Source
from polyak._foreign import torch_zip
from polyak._foreign.flatten import checkpoint_of
from polyak._foreign.numpy_pickle import PickledArray, makers, shape_of
from polyak._foreign.pickle_objects import Makers, Payload, Record
from polyak._foreign.sections import Memory, Section
from polyak._foreign.torch_zip import Storage, read_stream
from polyak._foreign.unpickle import Stream, load
from polyak._type_guards import is_dict
from polyak.errors import CheckpointError

_STORAGE = 1 << 10  # bytes, at most, of the pickles that describe one storage
_SLICES = "UnpackBigParamInfor@@"  # as Paddle spells it


def read_pickle(source: Source) -> Checkpoint:
    """The tensors of a plain pickle."""
    stream = Stream(source)
    arrays: list[PickledArray] = []
    storages: list[Storage] = []

    def storage(data: bytes | Payload) -> Storage:
        stream.spend(_STORAGE)
        if isinstance(data, Payload) and data.text:  # other encodings cannot be read in place
            stream.spend(data.size)
            data = data.read()
        in_file = isinstance(data, Payload)
        section = Section(source, data.offset, data.size) if in_file else Memory(source.name, data)
        inner = read_stream(section, _STORAGE, stream.budget).others
        if not isinstance(inner, Storage):
            raise CheckpointError("a tensor's storage holds something else than one storage")
        storages.append(inner)
        return inner

    # Calls are identified by name alone, so that each kind of pickle may contain the calls of the others.
    known = {**torch_zip.MAKERS, **_MAKERS, **makers(arrays), ("torch.storage", "_load_from_bytes"): storage}
    tree = load(stream, known)
    if storages:
        return checkpoint_of(source, "pytorch", tree)
    for array in arrays:
        array.as_bfloat16()
    return checkpoint_of(source, "paddle", _joined(source.name, tree))


def _joined(where: str, tree: object) -> object:
    """Paddle's pickled object, with sliced parameters joined."""
    if not is_dict(tree) or _SLICES not in tree:
        return tree
    joined: dict[object, Any] = {**tree}
    try:
        for name, info in dict(joined.pop(_SLICES)).items():
            joined[name] = _concatenated([joined.pop(part) for part in info["slices"]], info["OriginShape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is damaged: its description of sliced parameters is malformed."
        ) from error
    return joined


def _concatenated(slices: list[LazyTensor], shape: Iterable[Any]) -> LazyTensor:
    def read() -> Array:
        return np.concatenate([part.read().reshape(-1) for part in slices]).reshape(tensor.shape)

    first, *_ = slices
    tensor = ComputedTensor(first.dtype, shape_of(shape, first.dtype), read)
    if any(part.dtype != tensor.dtype for part in slices) or sum(part.size for part in slices) != tensor.size:
        raise ValueError("the slices do not make up the parameter")
    return tensor


def _eval(*args: Any) -> object:
    """Paddle pickles some tensors as ``eval("data", {"data": array})``: that, and no other expression."""
    match args:
        case ("data", {"data": data, **rest}) if not rest:
            return data
        case _:
            return Record("builtins", "eval", args)


def _tuple(items: Iterable[object] = ()) -> object:
    """A tensor is pickled as the tuple of its name and its values."""
    match tuple(items):
        case (str(), LazyTensor() as values):
            return values
        case values:
            return values


def _persistent(meta: object) -> Record:
    """An object that includes its class's name and source; its attributes are the state."""
    if not is_dict(meta) or not isinstance(name := meta.get("class_name"), str):
        raise CheckpointError("a persistent object does not name its class")
    return Record("torch_utils.persistence", name, (meta.get("module_src"),), meta.get("state"))


_MAKERS: Makers = {
    ("builtins", "eval"): _eval,
    ("builtins", "tuple"): _tuple,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
}
