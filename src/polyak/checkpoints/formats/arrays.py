"""NumPy arrays in pickles, their bytes left in the file."""

# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# What a pickle holds has no type until it is looked at.

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak.checkpoints.formats.pickles import Built, Global, Payload
from polyak.checkpoints.weights import Slot
from polyak.errors import CheckpointError

_SCALAR = 64  # bytes: the most that a single number can take


class ArraySlot(Slot, Built):
    """An array that a pickle makes empty and completes afterwards."""

    def __init__(self, dtype: np.dtype[Any] | None = None, shape: tuple[int, ...] = (0,)) -> None:
        self.dtype = np.dtype(np.uint8) if dtype is None else dtype
        self.shape = shape
        self._data: Payload | bytes = b""
        self._columns = self._swapped = False

    def build(self, state: Any) -> None:
        """``(version, shape, dtype, is_fortran, bytes)``, as ``ndarray.__reduce__`` gives them."""
        _, shape, dtype, columns, data = state
        self.fill(dtype, shape, data, bool(columns))

    def fill(self, dtype: Any, shape: Any, data: Payload | bytes | str, columns: bool) -> ArraySlot:
        """Be the array of these bytes.

        Raises:
            CheckpointError: it has another size, or holds objects.
        """
        if not isinstance(dtype, DType) or any(type(n) is not int or n < 0 for n in shape):
            raise CheckpointError(f"an array has the dtype {dtype!r} and the shape {shape!r}")
        if isinstance(data, str):  # Python 2
            data = data.encode("latin1")
        self.dtype, self.shape, self._columns = dtype.native, tuple(shape), columns
        self._swapped, self._data = dtype.swapped, data
        size = data.size if isinstance(data, Payload) else len(data)
        if size != self.nbytes:
            raise CheckpointError(f"an array of {self.dtype} {self.shape} has {size:,} bytes")
        return self

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        flat = self.read().reshape(-1) if self._columns or self._swapped else None
        if flat is not None:
            buffer[:] = flat[start : start + len(buffer)]
            return
        view, first = buffer.view(np.uint8), start * self.dtype.itemsize
        if isinstance(self._data, Payload):
            memory: Any = view
            self._data.source.read_into(self._data.offset + first, memoryview(memory))
        else:
            view[:] = np.frombuffer(self._data, np.uint8, len(view), first)

    def read(self) -> NDArray[Any]:
        data = self._data.read() if isinstance(self._data, Payload) else self._data
        stored = self.dtype.newbyteorder() if self._swapped else self.dtype
        array = np.frombuffer(data, stored).reshape(self.shape, order="F" if self._columns else "C")
        return np.ascontiguousarray(array, self.dtype).reshape(self.shape)


class DType(Built):
    """A NumPy dtype in a pickle: a code, then its byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        try:
            self.native: np.dtype[Any] = np.dtype(str(code))
        except (TypeError, ValueError, SyntaxError) as error:
            raise CheckpointError(f"{code!r} is no dtype") from error
        if self.native.kind not in "biufc":
            raise CheckpointError(f"an array of {self.native} holds objects, not numbers")
        self.swapped = False

    def build(self, state: Any) -> None:
        """``(version, byte order, …)``."""
        self.swapped = state[1] == ">"


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A single number."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    if isinstance(raw, Payload):
        raise CheckpointError(f"a number has {raw.size:,} bytes")
    if len(raw) > _SCALAR:
        raise CheckpointError(f"a number has {len(raw)} bytes")
    return np.frombuffer(raw, dtype.native.newbyteorder() if dtype.swapped else dtype.native)[0].item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> ArraySlot:
    return ArraySlot().fill(dtype, shape, data, order == "F")


ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): DType,
    ("numpy", "ndarray"): Global("numpy", "ndarray"),
    **{
        (f"numpy.{core}.{module}", name): make
        for core in ("core", "_core")
        for (module, name), make in {
            ("multiarray", "_reconstruct"): lambda *_: ArraySlot(),
            ("multiarray", "scalar"): _scalar,
            ("numeric", "_frombuffer"): _from_buffer,
        }.items()
    },
}
