"""Files of ``torch.save``: zip archives, and the streams that torch wrote before 1.6.

No torch is needed, nothing in the pickle is run, and a tensor's bytes stay in the file until they are
read. Layout: ``data.pkl`` builds the objects and names storages; each storage is a separate, uncompressed
entry, so that its bytes can be read in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np

from polyak._dtypes import BY_NAME, Array, DType
from polyak._files.checkpoint import Checkpoint, ComputedTensor, FileTensor, LazyTensor, NoArray
from polyak._files.source import Source
from polyak._foreign.flatten import EXPANDED, checkpoint_of
from polyak._foreign.numpy_pickle import makers, shape_of
from polyak._foreign.pickle_objects import (
    MOST,
    Budget,
    Global,
    Maker,
    Makers,
    is_tuple,
    recorded,
    same,
)
from polyak._foreign.sections import Entry, Zip
from polyak._foreign.unpickle import Stream, load
from polyak._type_guards import is_dict, is_list
from polyak.errors import CheckpointError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_IN_ID = 6  # values that tell which storage is meant; a million ids can be the same long tuple

# NumPy and ml_dtypes call their dtypes as torch does.
DTYPES: dict[str, DType] = {one.name: one for one in (*BY_NAME.values(), np.dtype(np.complex128))}
_NO_ARRAYS = {
    "sparse_tensor": "sparse",
    "sparse_csr_tensor": "sparse",
    "qtensor": "quantised",
    "meta_tensor_no_storage": "on the meta device, without values",
    "nested_tensor": "nested",
    "wrapper_subclass": "of a subclass that wraps others",
}
_STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    # Of quantised tensors, which are not read; what is beside them is.
    "QUInt8Storage": "uint8",
    "QInt8Storage": "int8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}


@dataclass(frozen=True)
class Storage:
    """The storage of one or several tensors: a range of bytes of the file."""

    source: Source = field(repr=False)
    offset: int
    nbytes: int
    dtype: DType


# Key, dtype and number of bytes of a storage to the storage.
Find: TypeAlias = Callable[[str, DType, int], Storage]


def read_zip(source: Source) -> Checkpoint:
    """A file as torch has written it since 1.6."""
    return checkpoint_of(source, "pytorch", tree_of_zip(source))


def tree_of_zip(source: Source) -> Any:
    """The object saved by ``torch.save``, with lazy tensors."""
    archive = Zip(source)

    @lru_cache(maxsize=1 << 16)  # a storage can be named a million times
    def find(key: str, dtype: DType, nbytes: int) -> Storage:
        entry = archive.entry(f"data/{key}")
        if entry.size < nbytes:
            raise CheckpointError(f"storage {key} should have {nbytes:,} bytes and has {entry.size:,}")
        return Storage(entry, 0, nbytes, dtype)

    if "byteorder" in archive and archive.entry("byteorder").read(0, 3) != b"lit":
        raise CheckpointError(
            f"{source.name} comes from a big-endian machine: save it on a little-endian one."
        )
    entry = archive.entry("data.pkl")
    entry.check()
    stream = Stream(source, entry.start, entry.start + entry.size)
    return load(stream, {**MAKERS, **makers([])}, _persistent(find))


def read_stream(source: Source, most: int = MOST, budget: Budget | None = None) -> Checkpoint:
    """A file as torch wrote it before 1.6: pickles one after the other, then the storages.

    The objects come before the order of the storages, so they are built twice: first to learn how large
    each storage is, then with all of them in place. ``budget`` is that of the file this one is a part of.
    """
    stream = Stream(source, most=most, budget=budget)
    if load(stream, {}) != _MAGIC or load(stream, {}) != _PROTOCOL:
        raise CheckpointError(f"{source.name} is a pickle, but not one of torch.save.")
    match load(stream, {}):
        case {"little_endian": True}:
            begin = stream.tell()
        case _:
            raise CheckpointError(
                f"{source.name} comes from a big-endian machine: save it on a little-endian one."
            )
    used: dict[str, tuple[int, int]] = {}

    def measure(key: str, dtype: DType, nbytes: int) -> Storage:
        used[key] = nbytes, dtype.itemsize
        return Storage(source, 0, nbytes, dtype)

    known = {**MAKERS, **makers([])}
    load(stream, known, _persistent(measure))
    listed = load(stream, {})
    keys = [str(key) for key in listed] if is_list(listed) else []
    if not is_list(listed) or sorted(keys) != sorted(used):
        raise CheckpointError(f"{source.name} is damaged: it lists other storages than its tensors use.")
    at, places = stream.tell(), dict[str, int]()
    for key in keys:
        nbytes, width = used[key]
        if int.from_bytes(source.read(at, 8), "little") * width != nbytes:
            raise CheckpointError(f"{source.name} is damaged: storage {key} does not have {nbytes:,} bytes.")
        places[key] = at + 8
        at += 8 + nbytes
    if at > source.size:
        raise CheckpointError(f"{source.name} is truncated at {source.size:,} of {at:,} bytes.")
    place = _persistent(lambda key, dtype, nbytes: Storage(source, places[key], nbytes, dtype))
    tree = load(Stream(source, begin, most=most, budget=budget), known, place)
    return checkpoint_of(source, "pytorch", tree)


def _persistent(find: Find) -> Callable[[object], object]:
    def storage(pid: object) -> object:
        unknown = CheckpointError("a storage is described in a way that torch does not write")
        if not is_tuple(pid) or len(pid) > _IN_ID:
            raise unknown
        if pid[0] == "module":  # a class with its source, which torch kept before 1.6
            return pid[1]
        kind, cls, key, _, count, *view = pid
        name = cls.name if isinstance(cls, Global) else ""
        if kind != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
            raise unknown
        if name not in _STORAGES:
            raise CheckpointError(f"a tensor lies in a torch.{name or '?'}, which polyak does not know")
        dtype = DTYPES[_STORAGES[name]]
        if view and view[0] is not None:  # a storage within another, which torch before 0.4 had
            raise CheckpointError("a storage is a view of another; load and save the file with torch >= 1.6")
        return find(key, dtype, count * dtype.itemsize)

    return storage


def _tensor(
    storage: Storage, offset: Any, shape: Any, stride: Any, grad: Any = 0, hooks: Any = 0, marks: Any = None
) -> LazyTensor:
    return _lazily(_strided(storage, storage.dtype, offset, shape, stride), marks)


def _tensor_v3(
    storage: Storage,
    offset: Any,
    shape: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    marks: Any = None,
) -> LazyTensor:
    if dtype.name not in DTYPES:  # of 4 bits, or half of a complex number: nothing here can hold them
        return NoArray(f"torch.{dtype.name}")
    return _lazily(_strided(storage, DTYPES[dtype.name], offset, shape, stride), marks)


def _lazily(stored: LazyTensor, marks: object) -> LazyTensor:
    """A tensor that is conjugated or negated when it is read, as torch stores lazy views."""
    marks = marks or {}
    if not is_dict(marks) or not set(marks) <= {"conj", "neg"}:
        raise CheckpointError("a tensor is marked by something else than conj and neg")
    conjugate, negate = bool(marks.get("conj")), bool(marks.get("neg"))
    if not conjugate and not negate:
        return stored

    def make() -> Array:
        values = np.conj(stored.read()) if conjugate else stored.read()
        return np.negative(values) if negate else values

    return ComputedTensor(stored.dtype, stored.shape, make)


def _strided(storage: Storage, dtype: DType, offset: Any, shape: Any, stride: Any) -> LazyTensor:
    """A tensor over a storage; refused when an element of it would lie outside."""
    shape, stride = shape_of(shape, dtype), tuple(stride)
    if len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *stride)):
        raise CheckpointError(f"a tensor of shape {shape} needs a stride for each axis, from 0 on")
    empty = 0 in shape
    last = 0 if empty else offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if not empty and (last + 1) * dtype.itemsize > storage.nbytes:
        raise CheckpointError(f"a tensor of shape {shape} reaches beyond its {storage.nbytes:,} bytes")
    begin = storage.offset + (0 if empty else offset) * dtype.itemsize
    if empty or _row_major(shape, stride):
        return _span(storage.source, begin, dtype, shape)
    count = last + 1 - offset
    if prod(shape) * dtype.itemsize > max(8 * count * dtype.itemsize, EXPANDED):
        raise CheckpointError(f"a tensor of shape {shape} is spread over {count} elements only")

    def make() -> Array:
        flat = FileTensor(storage.source, begin, dtype, (count,)).read()
        steps = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(shape, stride, strict=True)]
        # Not as_strided, which does not support the 8-bit floats of ml_dtypes.
        spread: Any = np.ndarray(shape, dtype, flat.view(np.uint8), 0, steps)
        return spread.copy()

    return ComputedTensor(dtype, shape, make)


def _span(source: Source, begin: int, dtype: DType, shape: tuple[int, ...]) -> FileTensor:
    """A tensor in its storage; the checksum of one that fills its zip entry is computed while reading."""
    if isinstance(source, Entry) and begin == 0 and prod(shape) * dtype.itemsize == source.size:
        return FileTensor(source.source, source.start, dtype, shape, source.crc)
    return FileTensor(source, begin, dtype, shape)


def _row_major(shape: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for n, step in zip(reversed(shape), reversed(stride), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def layout(name: object) -> Global:
    """A tensor's layout: strided, or one of several sparse ones."""
    if not isinstance(name, str):
        raise CheckpointError("a tensor's layout has no name")
    return Global("torch", name)


def _no_array(what: str) -> Maker:
    return lambda *_: NoArray(what)


def _from_type(make: Maker, cls: object, args: tuple[object, ...], state: object) -> LazyTensor:
    """A tensor with attributes, or of a subclass, as the tensor it is made of."""
    if make in (_tensor, _tensor_v3, same):
        return make(*args)
    return NoArray(f"a {cls}" if isinstance(cls, Global) else "of no class")


MAKERS: Makers = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): same,
    ("torch._utils", "_rebuild_parameter_with_state"): same,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch._tensor", "_rebuild_from_type"): _from_type,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): same,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): same,
    **{("torch._utils", f"_rebuild_{kind}"): _no_array(what) for kind, what in _NO_ARRAYS.items()},
    ("torch", "Size"): tuple,
    ("torch", "device"): recorded("torch", "device"),
    ("torch.serialization", "_get_layout"): layout,
}
