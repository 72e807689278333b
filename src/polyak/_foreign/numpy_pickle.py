"""NumPy arrays in pickles, their bytes left in the file."""

from __future__ import annotations

import sys
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak._dtypes import BFLOAT16
from polyak._files.checkpoint import LazyTensor
from polyak._files.layout import AXES
from polyak._foreign.pickle_objects import Built, Global, Payload, Record
from polyak.errors import CheckpointError

_SCALAR = 64  # bytes: the most that a single number can take
_CODE = 16  # characters of a dtype's code
_NUMBERS = "biufc"  # kinds of dtypes


def shape_of(value: Any, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """A shape in a file, if an array can have it.

    Raises:
        CheckpointError: it holds something else than sizes, or they are too many or too large.
    """
    shape: tuple[Any, ...] = tuple(value)
    if len(shape) > AXES or any(type(n) is not int or n < 0 for n in shape):
        raise CheckpointError(f"a tensor's shape must be at most {AXES} whole numbers from 0 on")
    if prod(max(n, 1) for n in shape) * dtype.itemsize > sys.maxsize:
        raise CheckpointError(f"a tensor is {dtype} of the shape {shape}, which no array can have")
    return shape


def _is_text(data: Any) -> bool:
    return data.text if isinstance(data, Payload) else isinstance(data, str)


class ArraySlot(LazyTensor, Built):
    """An array that a pickle makes empty and completes afterwards."""

    def __init__(self, dtype: np.dtype[Any] | None = None, shape: tuple[int, ...] = (0,)) -> None:
        self.dtype = np.dtype(np.uint8) if dtype is None else dtype
        self.shape = shape
        self._data: Payload | bytes | str = b""
        self._columns = self._swapped = False
        self.numbers = True  # text, times and objects keep their place, and are never read

    def build(self, state: Any) -> None:
        """``(version, shape, dtype, is_fortran, bytes)``, as ``ndarray.__reduce__`` gives them."""
        _, shape, dtype, columns, data = state
        self.fill(dtype, shape, data, bool(columns))

    def fill(self, dtype: Any, shape: Any, data: Payload | bytes | str, columns: bool) -> ArraySlot:
        """Be the array of these bytes.

        Raises:
            CheckpointError: it has another size.
        """
        if not isinstance(dtype, DType):
            raise CheckpointError("an array has something else than a dtype in its place")
        if dtype.native.kind not in _NUMBERS:
            self.dtype, self.numbers = dtype.native, False
            return self
        self.dtype, self.shape, self._columns = dtype.native, shape_of(shape, dtype.native), columns
        self._swapped, self._data = dtype.swapped, data
        # A string of Python 2 stays one until it is read: a million arrays can be given the same.
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

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        scattered = self._columns or self._swapped or _is_text(self._data)
        flat = self.read().reshape(-1) if scattered else None
        if flat is not None:
            buffer[:] = flat[start : start + len(buffer)]
            return
        view, first = buffer.view(np.uint8), start * self.dtype.itemsize
        if isinstance(self._data, Payload):
            memory: Any = view
            self._data.source.read_into(self._data.offset + first, memoryview(memory))
        else:
            view[:] = np.frombuffer(self._bytes(), np.uint8, len(view), first)

    def _bytes(self) -> bytes:
        if isinstance(self._data, Payload):
            return self._data.read()
        try:
            return self._data.encode("latin1") if isinstance(self._data, str) else self._data
        except UnicodeError as error:
            raise CheckpointError(
                "the bytes of an array are spelled with characters that are not Latin-1"
            ) from error

    def read(self) -> NDArray[Any]:
        data = self._bytes()
        if len(data) != self.nbytes:
            raise self._of_other_size(len(data))
        flat: Any = np.frombuffer(data, self.dtype)
        array: Any = flat.byteswap() if self._swapped else flat
        shaped: Any = array.reshape(self.shape, order="F" if self._columns else "C")
        return np.ascontiguousarray(shaped).reshape(self.shape)


class DType(Built):
    """A NumPy dtype in a pickle: a code, then its byte order."""

    def __init__(self, code: object, *_: Any) -> None:
        if not isinstance(code, str) or len(code) > _CODE:
            raise CheckpointError("a dtype is not named by a short code")
        try:
            self.native: np.dtype[Any] = np.dtype(code)
        except (TypeError, ValueError, SyntaxError) as error:
            raise CheckpointError(f"{code!r} is no dtype") from error
        self.swapped = False

    def build(self, state: Any) -> None:
        """``(version, byte order, …)``."""
        self.swapped = state[1] == ">"


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A single number; of words and times a record."""
    if dtype.native.kind not in _NUMBERS:
        return Record("numpy", str(dtype.native))
    raw = data.encode("latin1") if isinstance(data, str) else data
    if isinstance(raw, Payload):
        raise CheckpointError(f"a number has {raw.size:,} bytes")
    if len(raw) > _SCALAR:
        raise CheckpointError(f"a number has {len(raw)} bytes")
    return np.frombuffer(raw, dtype.native.newbyteorder() if dtype.swapped else dtype.native)[0].item()


def makers(made: list[ArraySlot]) -> dict[tuple[str, str], Any]:
    """What replaces NumPy's functions.

    Args:
        made: gets each array.
    """

    def empty(*_: Any) -> ArraySlot:
        made.append(ArraySlot())
        return made[-1]

    def from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> ArraySlot:
        return empty().fill(dtype, shape, data, order == "F")

    return {
        ("numpy", "dtype"): DType,
        ("numpy", "ndarray"): Global("numpy", "ndarray"),
        **{
            (f"numpy.{core}.{module}", name): make
            for core in ("core", "_core")
            for (module, name), make in {
                ("multiarray", "_reconstruct"): empty,
                ("multiarray", "scalar"): _scalar,
                ("numeric", "_frombuffer"): from_buffer,
            }.items()
        },
    }
