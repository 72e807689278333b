"""Writing so that a killed process leaves the old file or the new one, never half of either."""

from __future__ import annotations

import glob
import os
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.checkpoints.layout import Layout, Spec, arrange
from polyak.checkpoints.weights import as_bytes
from polyak.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: what a killed process left is not recognised there, and stays
    fcntl = None

_SYNC_EVERY = 1 << 26  # bytes written before they are forced to disk in the background
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have only the latter

# The values of one tensor, in row-major order, in pieces of any size.
Pieces: TypeAlias = Callable[[str], Iterable[NDArray[Any]]]


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Generator[Path]:
    """A temporary name beside ``path`` to write to; on success it takes the place of ``path``.

    The bytes are forced to disk before the rename and the folder after it, so the new file is there
    after a power cut too. On any exception the temporary file is removed and ``path`` is untouched.
    A killed process cannot remove its own; the next one to write the same file does.

    Raises:
        CheckpointError: the operating system refuses.
    """
    target = Path(path)
    try:
        _sweep(target)
        handle, temporary = _claimed(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}. Nothing was changed.") from error
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private; a finished file is an ordinary one
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}. Nothing was changed.") from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)
    with suppress(OSError):  # the file is in place; Windows and some network file systems sync no folder
        _sync_folder(target.parent)


def write_safetensors(
    path: str | os.PathLike[str], specs: Mapping[str, Spec], metadata: Mapping[str, str], pieces: Pieces
) -> None:
    """Write a safetensors file from tensors that need not be in memory together.

    Args:
        path: the file; an old one is replaced when the new one is complete.
        specs: dtype and shape of each tensor.
        metadata: strings for the header.
        pieces: called with each name, in the order of the file; yields contiguous arrays.

    Raises:
        CheckpointError: the format has no name for a dtype, or the system refuses. Nothing is changed.
    """
    layout = arrange(specs, metadata)
    with atomic(path) as temporary, temporary.open("wb", buffering=0) as file:
        write_body(file, layout, specs, pieces)


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """``write_safetensors`` for arrays that are in memory.

    Raises:
        CheckpointError: the format has no name for a dtype, or the system refuses. Nothing is changed.
    """
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    write_safetensors(path, specs, metadata, lambda name: [np.ascontiguousarray(arrays[name])])


def write_body(file: BinaryIO, layout: Layout, specs: Mapping[str, Spec], pieces: Pieces) -> None:
    """The whole of a safetensors file into an open one, checksums included."""
    with ThreadPoolExecutor(1, "polyak-sync") as syncing:
        _write_all(file, layout, specs, pieces, syncing)


def _write_all(
    file: BinaryIO, layout: Layout, specs: Mapping[str, Spec], pieces: Pieces, syncing: ThreadPoolExecutor
) -> None:
    _write(file, memoryview(layout.header))
    unsynced, synced = 0, Future[None]()
    synced.set_result(None)
    sums: list[int] = []
    for name in layout.names:
        crc, count = 0, 0
        for piece in pieces(name):
            view = as_bytes(piece)
            _write(file, view)
            crc, count, unsynced = zlib.crc32(view, crc), count + len(view), unsynced + len(view)
            # Forced to disk while the next is made: left to the end, or to the system's own throttling,
            # gigabytes of dirty pages take several times as long.
            if unsynced > _SYNC_EVERY:
                synced.result()
                unsynced, synced = 0, syncing.submit(_sync_data, file.fileno())
        if count != specs[name].nbytes:
            raise AssertionError(f"{name}: {count} bytes were given, {specs[name].nbytes} announced")
        sums.append(crc)
    synced.result()
    file.seek(0)
    _write(file, memoryview(layout.with_sums(sums)))


def _write(file: BinaryIO, view: memoryview) -> None:
    while len(view):  # one write takes at most 2 GiB
        view = view[file.write(view) :]


def _claimed(target: Path) -> tuple[int, Path]:
    """A new temporary file, locked for as long as this process lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        _locked(handle)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # another writer swept it away between its making and its lock


def _sweep(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``target``."""
    if fcntl is None:
        return
    for name in glob.glob(glob.escape(f"{target.parent}/.{target.name}.") + "*.part"):
        with suppress(OSError):
            handle = os.open(name, os.O_RDWR)
            try:
                if _locked(handle):
                    os.unlink(name)
            finally:
                os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock of a file could be had; the system frees it when its owner dies."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)  # the only portable way to read it is to set it
    os.umask(mask)
    return mask
