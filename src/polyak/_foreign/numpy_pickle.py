"""NumPy arrays in pickles, whose bytes stay in the file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np

from polyak._dtypes import BFLOAT16, Array, DType
from polyak._files.checkpoint import LazyTensor, as_bytes
from polyak._files.layout import AXES
from polyak._foreign.pickle_objects import Built, Global, Makers, Payload, Record
from polyak.errors import CheckpointError

_SCALAR = 64  # bytes: the most that a single number can take
_CODE = 16  # characters of a dtype's code


def shape_of(value: Iterable[Any], dtype: DType) -> tuple[int, ...]:
    """A shape in a file, if an array can have it."""
    shape = tuple(value)
    if len(shape) > AXES or any(type(n) is not int or n < 0 for n in shape):
        raise CheckpointError(f"a tensor's shape must be at most {AXES} whole numbers from 0 on")
    if prod(max(n, 1) for n in shape) * dtype.itemsize > sys.maxsize:
        raise CheckpointError(f"a tensor is {dtype} of the shape {shape}, which no array can have")
    return shape


class PickledArray(LazyTensor, Built):
    """An array that a pickle creates empty and then fills; text, times and objects are never read."""

    def __init__(self) -> None:
        self.dtype, self.shape = np.dtype(np.uint8), (0,)
        self._data: Payload | bytes | str = b""
        self._columns = self._swapped = False

    def build(self, state: Any) -> None:
        """``(version, shape, dtype, is_fortran, bytes)``, as ``ndarray.__reduce__`` gives them."""
        _, shape, dtype, columns, data = state
        self.fill(dtype, shape, data, bool(columns))

    def fill(
        self, dtype: object, shape: Iterable[Any], data: Payload | bytes | str, columns: bool
    ) -> PickledArray:
        """Be the array of these bytes."""
        if not isinstance(dtype, PickledDType):
            raise CheckpointError("an array has something else than a dtype in its place")
        self.dtype = dtype.native
        if not is_numeric(self.dtype):
            return self
        self.shape, self._columns = shape_of(shape, self.dtype), columns
        self._swapped, self._data = dtype.swapped, data
        # A string of Python 2 is converted when it is read: a million arrays can share one.
        size = data.size if isinstance(data, Payload) else len(data)
        # As text, a byte takes one or two; how many there are is known when it is read.
        spelled = isinstance(data, Payload) and data.text and self.nbytes <= size <= 2 * self.nbytes
        if size != self.nbytes and not spelled:
            raise self._of_other_size(size)
        return self

    def _of_other_size(self, size: int) -> CheckpointError:
        return CheckpointError(f"an array of {self.dtype} {self.shape} has {size:,} bytes")

    def as_bfloat16(self) -> None:
        """Take 16 unsigned bits for a bfloat16."""
        if self.dtype == np.uint16 and not self._swapped:
            self.dtype = BFLOAT16

    def read_into(self, start: int, buffer: Array) -> None:
        data = self._data
        if isinstance(data, Payload) and not (data.text or self._columns or self._swapped):
            data.source.read_into(data.offset + start * self.dtype.itemsize, as_bytes(buffer))
        else:
            buffer[:] = self.read().reshape(-1)[start : start + len(buffer)]

    def read(self) -> Array:
        data = self._data.read() if isinstance(self._data, Payload) else self._data
        try:
            data = data.encode("latin1") if isinstance(data, str) else data
        except UnicodeError as error:
            raise CheckpointError("the bytes of an array contain characters that are not Latin-1") from error
        if len(data) != self.nbytes:
            raise self._of_other_size(len(data))
        flat: Any = np.frombuffer(data, self.dtype)
        array: Array = flat.byteswap() if self._swapped else flat
        ordered = np.ascontiguousarray(array.reshape(self.shape, order="F" if self._columns else "C"))
        return ordered.reshape(self.shape)  # ascontiguousarray gives a single number an axis


def is_numeric(dtype: DType) -> bool:
    """Whether arrays of this dtype hold numbers."""
    return dtype.kind in "biufc" or dtype == BFLOAT16


class PickledDType(Built):
    """A NumPy dtype in a pickle: a code, then its byte order."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or len(code) > _CODE:
            raise CheckpointError("a dtype is not named by a short code")
        try:
            self.native: DType = np.dtype(code)
        except (TypeError, ValueError, SyntaxError) as error:
            raise CheckpointError(f"{code!r} is not a dtype") from error
        self.swapped = False

    def build(self, state: Any) -> None:
        """``(version, byte order, …)``."""
        self.swapped = state[1] == ">"


def _scalar(dtype: PickledDType, data: str | bytes | Payload = b"") -> Any:
    """A single number; of words and times a record."""
    if not is_numeric(dtype.native):
        return Record("numpy", str(dtype.native))
    raw = data.encode("latin1") if isinstance(data, str) else data
    size = raw.size if isinstance(raw, Payload) else len(raw)
    if isinstance(raw, Payload) or size > _SCALAR:
        raise CheckpointError(f"a number has {size:,} bytes")
    one: Any = np.frombuffer(raw, dtype.native)
    return (one.byteswap() if dtype.swapped else one)[0].item()


def makers(made: list[PickledArray]) -> Makers:
    """The replacements of NumPy's functions; each array is added to ``made``."""

    def empty(*_: object) -> PickledArray:
        made.append(PickledArray())
        return made[-1]

    def from_buffer(
        data: Payload | bytes | str, dtype: object, shape: Iterable[Any], order: str
    ) -> PickledArray:
        return empty().fill(dtype, shape, data, order == "F")

    functions = {
        "multiarray._reconstruct": empty,
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": from_buffer,
    }
    return {
        ("numpy", "dtype"): PickledDType,
        ("numpy", "ndarray"): Global("numpy", "ndarray"),
        **{
            (f"numpy.{core}.{module}", name): make
            for core in ("core", "_core")
            for (module, name), make in ((path.split("."), make) for path, make in functions.items())
        },
    }
