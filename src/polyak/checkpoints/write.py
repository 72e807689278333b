"""Writing so that a killed process leaves the old file or the new one, never half of either."""

from __future__ import annotations

import glob
import os
import secrets
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
    sweep(target)
    with claimed(target) as temporary:
        yield temporary
        place(temporary, target)
        sync_folder(target.parent)


@contextmanager
def claimed(target: Path) -> Generator[Path]:
    """A temporary file beside ``target``, locked while this process lives, gone at the end.

    Raises:
        CheckpointError: the operating system refuses, here or while it is written.
    """
    with refusals(target):
        try:
            handle, temporary = _claim(target)
        except ValueError as error:  # half a surrogate pair, or a zero byte
            raise CheckpointError(f"{str(target)!r} is no name for a file: {error}.") from error
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)


def place(temporary: Path, target: Path) -> None:
    """Give a finished file its name, its bytes safely on the disk."""
    with temporary.open("r+b") as file:
        os.fsync(file.fileno())
    temporary.replace(target)


@contextmanager
def refusals(target: Path) -> Generator[None]:
    """Say what could not be written when the operating system refuses."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}. Nothing was changed.") from error


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


def sweep(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``target``."""
    if fcntl is None:
        return
    for name in glob.glob(glob.escape(f"{target.parent}/.{target.name}.") + "*.part"):
        with suppress(OSError):
            handle = os.open(name, os.O_RDWR)
            try:
                if _lock(handle) is None:
                    os.unlink(name)
            finally:
                os.close(handle)


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Wait until no other process or thread is in such a block for the same folder.

    On systems and disks without locks it does not wait: there, one at a time may write a set of files.
    """
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if fcntl is not None and handle is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl is not None and handle is not None:
            with suppress(OSError):  # a process forked meanwhile shares the lock: closing leaves it to that
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk, where the system can."""
    with suppress(OSError):  # Windows and some network file systems sync no folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _claim(target: Path) -> tuple[int | None, Path]:
    """A new temporary file, locked for as long as this process lives."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
        # Not by mkstemp: it makes private files, and to read the umask is to set it, for all threads.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:  # Windows renames no open file
            os.close(handle)
            return None, temporary
        # Another writer may take it for litter between its making and its lock.
        if not isinstance(_lock(handle), BlockingIOError) and temporary.exists():
            return handle, temporary
        os.close(handle)


def _lock(handle: int) -> OSError | None:
    """Lock a file; the system frees it when its owner dies. What refuses, if it is refused."""
    if fcntl is None:
        return OSError("no locks")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None
