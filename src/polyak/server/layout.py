"""Which elements of which tensor are where: the model as one flat range, divided among the shards.

Averages are float32, or float64 where the first value is. A complex tensor is its real and imaginary parts
side by side. Integers, booleans and the vectors of spectral norm are not averaged but copied from the newest
step, as ``polyak.EMA`` does.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from polyak._dtypes import BFLOAT16, BY_NAME, NAMES, Array, DType, is_float
from polyak.errors import ServerError

# What a push may send for a tensor that is averaged.
PUSHED = tuple(BY_NAME[name] for name in ("F32", "F64", "BF16", "F16"))


class Field(NamedTuple):
    """One tensor of the model.

    dtype: of the average, by its name in a safetensors file; of the tensor itself if it is copied.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    averaged: bool

    @property
    def size(self) -> int:
        """Number of elements as they are kept: a complex one counts as two."""
        return prod(self.shape) * (2 if self.is_complex else 1)

    @property
    def is_complex(self) -> bool:
        return self.averaged and self.dtype.startswith("C")

    @property
    def kept_as(self) -> DType:
        """The dtype in a shard's memory."""
        return BY_NAME["F32"] if self.is_complex else BY_NAME[self.dtype]

    def takes(self, dtype: DType) -> bool:
        """Whether elements of this dtype may be pushed."""
        return dtype in PUSHED if self.averaged else dtype == self.kept_as


class Piece(NamedTuple):
    """Elements of one tensor, flat, that one shard keeps."""

    field: Field
    begin: int
    end: int

    @property
    def key(self) -> str:
        """Its name in a shard's file."""
        return f"{self.field.name}@{self.begin}"

    @property
    def size(self) -> int:
        return self.end - self.begin


class Layout(tuple[Field, ...]):
    """The tensors of a model, in the order of their names."""

    @classmethod
    def of(cls, tensors: Mapping[str, Array], copied: Collection[str] = ()) -> Layout:
        """The layout of a first value; ``copied`` names floats that are not to be averaged."""
        return cls(_field(name, tensors[name], name not in copied) for name in sorted(tensors))

    @classmethod
    def from_config(cls, config: Iterable[Any]) -> Layout:
        """The inverse of ``to_config``, also after JSON."""
        return cls(Field(str(n), str(d), tuple(shape), bool(a)) for n, d, shape, a in config)

    def to_config(self) -> list[list[Any]]:
        """Plain values, for JSON."""
        return [list(field) for field in self]

    @cached_property
    def digest(self) -> int:
        """The same for equal layouts only, but for one chance in 2³²."""
        return zlib.crc32(json.dumps(self.to_config()).encode())

    @property
    def nbytes(self) -> int:
        """Bytes of the average."""
        return sum(field.size * field.kept_as.itemsize for field in self)

    def divided(self, shards: int) -> list[list[Piece]]:
        """The pieces of each shard: equal ranges of all elements; some may be empty."""
        total, begun = sum(field.size for field in self), 0
        ranges = [(total * i // shards, total * (i + 1) // shards) for i in range(shards)]
        out: list[list[Piece]] = [[] for _ in ranges]
        for field in self:
            for pieces, (low, high) in zip(out, ranges, strict=True):
                begin, end = max(low - begun, 0), min(high - begun, field.size)
                if begin < end:
                    pieces.append(Piece(field, begin, end))
            begun += field.size
        return out

    def flat(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Each tensor as one flat array of numbers that can be pushed, in the layout's order.

        Raises:
            ServerError: names, shapes or dtypes differ from those of the average.
        """
        missing, unknown = {f.name for f in self} - tensors.keys(), tensors.keys() - {f.name for f in self}
        if missing or unknown:
            raise ServerError(
                f"push: the names differ from the average's: {_some(missing)} missing, {_some(unknown)} not "
                "in it. Push the model whose first value the server was started with. Nothing was changed."
            )
        return {field.name: _flat(field, tensors[field.name]) for field in self}

    def kept(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Each tensor flat and as a shard keeps it."""
        flat = self.flat(tensors)
        return {field.name: flat[field.name].astype(field.kept_as, copy=False) for field in self}

    def assembled(self, kept: Mapping[str, Sequence[Array]]) -> dict[str, Array]:
        """The tensors from the pieces of all shards, by name, in order."""
        out: dict[str, Array] = {}
        for field in self:
            # A copy: what comes from the object store is read-only and keeps its memory there.
            whole = np.concatenate([np.empty(0, field.kept_as), *kept.get(field.name, [])])
            out[field.name] = (whole.view(BY_NAME[field.dtype]) if field.is_complex else whole).reshape(
                field.shape
            )
        return out


def wire(array: Array) -> tuple[str, Array]:
    """A flat array for a message: its dtype by name and its bytes, for which pickle knows no copy."""
    return NAMES[array.dtype], np.ascontiguousarray(array).view(np.uint8)


def compressed(array: Array) -> Array:
    """Rounded to bfloat16, if it is a wider float."""
    return array.astype(BFLOAT16) if array.dtype in PUSHED[:2] else array


def _field(name: str, array: Array, averaged: bool) -> Field:
    if not (averaged and is_float(array.dtype)):
        return Field(name, NAMES[array.dtype], array.shape, False)
    if array.dtype.kind == "c":
        return Field(name, "C64", array.shape, True)
    return Field(name, "F64" if array.dtype == np.float64 else "F32", array.shape, True)


def _flat(field: Field, array: Array) -> Array:
    if array.shape != field.shape:
        raise ServerError(
            f"push: {field.name} has shape {array.shape}, the average {field.shape}. Nothing was changed."
        )
    if field.is_complex and array.dtype.kind == "c":
        array = array.astype(np.complex64, copy=False).reshape(-1).view(np.float32)
    elif field.averaged and is_float(array.dtype) and array.dtype.kind != "c" and not field.is_complex:
        array = array if array.dtype in PUSHED else array.astype(np.float32)  # floats of 8 bits
    elif array.dtype != field.kept_as or field.averaged:
        raise ServerError(
            f"push: {field.name} is {array.dtype}, the average {field.dtype}. Nothing was changed."
        )
    return np.ascontiguousarray(array).reshape(-1)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(first) or "none") + more
