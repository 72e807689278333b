"""Named tensors whose values stay in their file until they are asked for.

Every format polyak reads ends here, so that what is done with weights (averaging, converting, looking)
is written once and needs no more memory than the piece it works on.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak._files.source import Source
from polyak.errors import CheckpointError

_PIECE = 1 << 24  # bytes looked at together when a checksum is taken


class LazyTensor(ABC):
    """One tensor of a file: its dtype and shape now, its values when read.

    dtype: NumPy's, or ml_dtypes'.  shape: any; () is a single number.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def kind(self) -> str:
        """What messages call it: its dtype, or why it is no array."""
        return str(self.dtype)

    @abstractmethod
    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        """Fill a contiguous array of this dtype with the elements from ``start`` on, in row-major order."""

    def read(self) -> NDArray[Any]:
        """The whole tensor.

        Raises:
            CheckpointError: the file cannot be read, or its bytes are not those that were written.
        """
        flat = np.empty(self.size, self.dtype)
        self.read_into(0, flat)
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class FileTensor(LazyTensor):
    """A tensor that lies in a file as one run of bytes.

    Args:
        source: the file.
        offset: its first byte there.
        dtype: of the elements.
        shape: row-major.
        crc: CRC-32 of its bytes, if the file says; ``read`` compares.
    """

    source: Source = field(repr=False)
    offset: int
    dtype: np.dtype[Any]  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    shape: tuple[int, ...]  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    crc: int | None = None

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        self.source.read_into(self.offset + start * self.dtype.itemsize, as_bytes(buffer))

    def read(self) -> NDArray[Any]:
        array = super().read()
        if self.crc is not None and zlib.crc32(as_bytes(array)) != self.crc:
            raise CheckpointError(f"{self.source.name} is damaged: {self._where()}")
        return array

    def _where(self) -> str:
        return (
            f"the {self.nbytes:,} bytes from {self.offset:,} on are not those that were written. "
            "Copy it again from its origin."
        )


@dataclass(frozen=True)
class ComputedTensor(LazyTensor):
    """A tensor made from its file by a function: one that is strided there, or in pieces.

    Args:
        dtype: of the elements.
        shape: row-major.
        make: returns the whole array; called at each read, nothing is kept.
    """

    dtype: np.dtype[Any]  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    shape: tuple[int, ...]  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    make: Callable[[], NDArray[Any]] = field(repr=False)

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        buffer[:] = self.make().reshape(-1)[start : start + len(buffer)]


@dataclass(frozen=True)
class NoArray(LazyTensor):
    """A tensor that no array can be: it has its place and its name, and cannot be read."""

    what: str
    dtype: np.dtype[Any] = field(default=np.dtype("V0"), init=False)  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    shape: tuple[int, ...] = field(default=(0,), init=False)  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]

    @property
    def kind(self) -> str:
        return self.what

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        raise CheckpointError(
            f"a tensor is {self.what}: polyak reads arrays of numbers. Load the file with torch, make it a "
            "plain tensor (dequantize(), to_dense(), full_tensor(), …) and save it again."
        )


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, by name, and what else it says.

    Use it as a context manager: leaving closes the files, after which nothing can be read.

    Args:
        where: the path or URL it came from.
        format: "safetensors", "pytorch", "paddle" or "dcp".
        slots: the tensors.
        metadata: strings of the safetensors header.
        others: for a pickle, everything in it, tensors being ``LazyTensor``s; for other formats None.
        sources: the open files.
    """

    where: str
    format: str
    slots: Mapping[str, LazyTensor]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    others: Any = None
    sources: tuple[Source, ...] = ()

    def places(self) -> dict[str, dict[str, LazyTensor]]:
        """The tensors by what stands before the first slash of their names, as resumable files have them."""
        groups: dict[str, dict[str, LazyTensor]] = {}
        for key, slot in self.slots.items():
            place, _, name = key.partition("/")
            groups.setdefault(place, {})[name] = slot
        return groups

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in self.sources:
            source.close()


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array, byte by byte."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)  # ml_dtypes have no buffer protocol of their own
