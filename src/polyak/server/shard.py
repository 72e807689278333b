"""A shard: one range of the average's elements, and the arithmetic on them.

A push is staged first, by its worker: checked here, before anything is changed. The ledger, which has seen
that all shards took it, then applies it at each, so all shards count the same pushes in the same order, and
a version is the same set of pushes everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from polyak import _kernel
from polyak._dtypes import BY_NAME, Array
from polyak._kernel.pair import Pair
from polyak.errors import ServerError
from polyak.server.layout import Piece
from polyak.server.versions import Versions

_FORGOTTEN = 600.0  # seconds after which a push that was staged and never counted is dropped
_BLOCK = 1 << 18  # elements that NumPy works on at a time, where there is no kernel


class Message(NamedTuple):
    """A push's values for one shard: for each piece the name of a dtype and the bytes, flat."""

    digest: int
    dtypes: list[str]
    arrays: list[Array]


class Staged(NamedTuple):
    """A push that was checked and waits to be counted."""

    id: int
    time: float
    arrays: list[Array]


class Memory(NamedTuple):
    """An array as the kernel sees it."""

    array: Array

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def numel(self) -> int:
        return self.array.size


class Shard:
    """One range of the average, from the newest version in a folder on.

    Args:
        folder: of the server, reachable from every machine that may run a shard.
        index: which of the shards.
    """

    def __init__(self, folder: str, index: int) -> None:
        self._versions = Versions(folder)
        record = self._versions.newest()
        if record is None:
            raise ServerError(f"{folder} holds no version of an average: start the server first.")
        self._index, self._count, self._digest = index, record.shards, record.layout.digest
        self._pieces = record.layout.divided(record.shards)[index]
        self._staged: dict[str, Staged] = {}
        self.rewind(record.version)

    def rewind(self, version: int) -> None:
        """Go back to a version on disk; what was counted since is sent again by its workers."""
        self._values = self._versions.read_pieces(version, self._index, self._count, self._pieces)
        self._version = version

    def stage(self, worker: str, id: int, message: Any) -> None:
        """Check a push and keep it until it is counted; the worker's last one is forgotten.

        Raises:
            ServerError: it does not fit, or an element is not finite.
        """
        arrays = checked(message, self._digest, self._pieces)
        unfit = self._unfit(arrays)
        if unfit:
            raise ServerError(
                f"push {id} of {worker}: {', '.join(unfit[:3])} not finite, or too large for the average. "
                "Nothing was changed."
            )
        now = time.monotonic()
        self._staged = {who: one for who, one in self._staged.items() if now - one.time < _FORGOTTEN}
        self._staged[worker] = Staged(id, now, arrays)

    def apply(self, version: int, worker: str, id: int, share: float, copy: bool) -> None:
        """``A ← A + share·(θ-A)`` with a staged push, which makes this version.

        Args:
            version: the next one.
            worker: who staged the push.
            id: of the push.
            share: m/M'.
            copy: the push is from the newest step: what is not averaged is copied from it.

        Raises:
            ServerError: this shard is at another version, or the push is not here: it was restarted.
        """
        self._check_version(version - 1)
        staged = self._staged.get(worker)
        if staged is None or staged.id != id:
            raise ServerError(f"shard {self._index} lost push {id} of {worker}.")
        averaged = [i for i, piece in enumerate(self._pieces) if piece.field.averaged]
        average([self._values[i] for i in averaged], [staged.arrays[i] for i in averaged], share)
        for i in range(len(self._pieces)) if copy else ():
            if not self._pieces[i].field.averaged:
                self._values[i][:] = staged.arrays[i]
        del self._staged[worker]
        self._version = version

    def write(self, version: int) -> None:
        """Write this version to disk.

        Raises:
            ServerError: this shard is at another.
        """
        self._check_version(version)
        arrays = {piece.key: value for piece, value in zip(self._pieces, self._values, strict=True)}
        self._versions.write_pieces(version, self._index, self._count, arrays)

    def read(self, version: int) -> list[Array]:
        """The values of a version on disk, one array for each piece."""
        return self._versions.read_pieces(version, self._index, self._count, self._pieces)

    def _check_version(self, version: int) -> None:
        if self._version != version:
            raise ServerError(f"shard {self._index} is at version {self._version}, not {version}.")

    def _unfit(self, arrays: Sequence[Array]) -> list[str]:
        """The tensors with elements that the average cannot hold."""
        both = zip(self._pieces, self._values, arrays, strict=True)
        return [p.field.name for p, value, array in both if p.field.averaged and not fits(array, value)]


def checked(message: Any, digest: int, pieces: Sequence[Piece]) -> list[Array]:
    """The arrays of a message, on its own memory.

    Raises:
        ServerError: it is for another model, or not what a client sends.
    """
    if type(message) is not Message or type(message.digest) is not int:
        raise ServerError(f"a push must be arrays and numbers, not {type(message).__name__}.")
    if message.digest != digest:
        raise ServerError(
            "push: its names, shapes or dtypes are not the average's. Nothing was changed; make a new Client."
        )
    if not len(message.dtypes) == len(message.arrays) == len(pieces):
        raise ServerError(f"push: {len(message.arrays)} arrays for the {len(pieces)} pieces of this shard.")
    return [_array(*one) for one in zip(pieces, message.dtypes, message.arrays, strict=True)]


def _array(piece: Piece, name: Any, raw: Any) -> Array:
    dtype = BY_NAME.get(name) if type(name) is str else None
    if dtype is None or not piece.field.takes(dtype):
        raise ServerError(f"push: {piece.field.name} is sent as {name!r}. Nothing was changed.")
    flat = type(raw) is np.ndarray and raw.dtype == np.uint8 and raw.ndim == 1 and raw.flags.c_contiguous
    if not flat or raw.nbytes != piece.size * dtype.itemsize:
        size = raw.nbytes if flat else type(raw).__name__
        raise ServerError(
            f"push: {piece.field.name} is {size}, not {piece.size * dtype.itemsize} bytes. "
            "Nothing was changed."
        )
    return raw.view(dtype)


def fits(array: Array, value: Array) -> bool:
    """Whether all elements are finite in the average's dtype."""
    if _kernel.native is not None:
        return not _engine([value], [array]).bad()
    blocks = (array[i : i + _BLOCK].astype(value.dtype) for i in range(0, array.size, _BLOCK))
    with np.errstate(over="ignore"):
        return all(bool(np.isfinite(block).all()) for block in blocks)


def average(values: Sequence[Array], arrays: Sequence[Array], share: float) -> None:
    """``A ← A + share·(θ-A)``, in place, in the average's dtype."""
    if not values:
        return
    if _kernel.native is not None:
        _engine(values, arrays).update((share,), step=0, skip=False)
        return
    for value, array in zip(values, arrays, strict=True):
        for i in range(0, array.size, _BLOCK):
            block, new = value[i : i + _BLOCK], array[i : i + _BLOCK].astype(value.dtype)
            # With the whole share nothing of the old value may be left, not even a rounding error.
            block[:] = new if share == 1 else block + value.dtype.type(share) * (new - block)


def _engine(values: Sequence[Array], arrays: Sequence[Array]) -> Any:
    pairs = [
        Pair(str(i), Memory(a), (Memory(v),)) for i, (v, a) in enumerate(zip(values, arrays, strict=True))
    ]
    assert _kernel.native is not None
    return _kernel.native.Native(pairs, 0, lambda memory: memory, lambda: 1)
