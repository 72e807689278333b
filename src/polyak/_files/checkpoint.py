"""Named tensors whose values stay in their file until they are read.

All formats are read into these classes, so that averaging, converting and describing are written once and
need no more memory than the piece they work on.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from polyak._dtypes import Array, DType
from polyak._files.source import Source
from polyak.errors import CheckpointError


class LazyTensor(ABC):
    """One tensor of a file: its dtype (NumPy's or ml_dtypes') and shape now, its values when read."""

    dtype: DType
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
        """Its description in messages: the dtype, or why it is not an array."""
        return str(self.dtype)

    @abstractmethod
    def read_into(self, start: int, buffer: Array) -> None:
        """Fill a contiguous array of this dtype with the elements from ``start`` on, in row-major order."""

    def read(self) -> Array:
        """All values."""
        flat = np.empty(self.size, self.dtype)
        self.read_into(0, flat)
        return flat.reshape(self.shape)


# Hashable, to find tensors that share their bytes; not frozen, because LazyTensor is not.
@dataclass(unsafe_hash=True)
class FileTensor(LazyTensor):
    """A tensor stored in a file as one range of bytes."""

    source: Source = field(repr=False)
    offset: int  # of its first byte in the file
    dtype: DType
    shape: tuple[int, ...]
    crc: int | None = None  # CRC-32 of its bytes, if the file has one; ``read`` compares

    def read_into(self, start: int, buffer: Array) -> None:
        self.source.read_into(self.offset + start * self.dtype.itemsize, as_bytes(buffer))

    def read(self) -> Array:
        array = super().read()
        if self.crc is not None and zlib.crc32(as_bytes(array)) != self.crc:
            raise CheckpointError(
                f"{self.source.name} is damaged: the {self.nbytes:,} bytes from {self.offset:,} on differ "
                "from those that were written. Copy it again from its origin."
            )
        return array


@dataclass(unsafe_hash=True)
class ComputedTensor(LazyTensor):
    """A tensor computed from its file at each read: one that is strided there, or in pieces."""

    dtype: DType
    shape: tuple[int, ...]
    make: Callable[[], Array] = field(repr=False)

    def read_into(self, start: int, buffer: Array) -> None:
        buffer[:] = self.make().reshape(-1)[start : start + len(buffer)]


@dataclass(unsafe_hash=True)
class NoArray(LazyTensor):
    """A tensor that is not an array: it has a name, but cannot be read."""

    what: str
    dtype: DType = field(default=np.dtype("V0"), init=False)
    shape: tuple[int, ...] = field(default=(0,), init=False)

    @property
    def kind(self) -> str:
        return self.what

    def read_into(self, start: int, buffer: Array) -> None:
        raise CheckpointError(
            f"a tensor is {self.what}: polyak reads arrays of numbers. Load the file with torch, make it a "
            "plain tensor (dequantize(), to_dense(), full_tensor(), …) and save it again."
        )


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, by name, and its metadata; leaving its ``with`` closes the files."""

    where: str  # the path or URL it came from
    format: str  # "safetensors", "pytorch", "paddle", "keras" or "dcp"
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])  # of the safetensors header
    others: Any = None  # everything in a pickle, its tensors being ``LazyTensor``s; None for other formats
    sources: tuple[Source, ...] = ()

    def places(self) -> dict[str, dict[str, LazyTensor]]:
        """The tensors grouped by the part of their names before the first slash, as in resumable files."""
        groups: dict[str, dict[str, LazyTensor]] = {}
        for key, tensor in self.tensors.items():
            place, _, name = key.partition("/")
            groups.setdefault(place, {})[name] = tensor
        return groups

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self.sources:
            source.close()


def as_bytes(array: Array) -> memoryview:
    """The memory of a contiguous array, byte by byte; ml_dtypes have no buffer protocol of their own."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)
