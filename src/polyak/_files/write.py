"""Atomic writing: a killed process leaves the old file or the new one, never a part of either."""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import stat
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np

from polyak._dtypes import Array
from polyak._files.checkpoint import as_bytes
from polyak._files.layout import Layout, Spec, arrange
from polyak._files.locks import close, try_lock
from polyak.errors import CheckpointError

if sys.platform == "darwin":
    import fcntl

_RANDOM = 6  # random bytes in the name of a temporary file
_LONGEST = 100  # bytes of a name from which others are derived: with additions they stay below any limit
_BLOCK = 1 << 20  # bytes copied, summed and written at a time: they stay in the processor's cache
_SYNC_EVERY = 1 << 26  # bytes written before they are forced to disk in the background
_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have only the latter
_PATIENCE = 2.0  # seconds until a file that is open on Windows is not replaced

# The values of one tensor, in row-major order, in pieces of any size.
Pieces: TypeAlias = Callable[[str], Iterable[Array]]


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Generator[Path]:
    """A temporary file beside ``path`` to write to; on success it replaces ``path``.

    The bytes are forced to disk before the rename and the folder after it, so the new file survives a power
    cut. On any exception the temporary file is removed and ``path`` is unchanged. A killed process cannot
    remove its temporary file; the next writer of the same file does. The new file gets the mode and owner of
    the old one; a link is followed.
    """
    with refusals(Path(path)):
        target = real(path)
        rights = rights_of(target)
        sweep(target)
        with claimed(target, rights) as temporary:
            yield temporary
            place(temporary, target, rights)
            sync_folder(target.parent)


@contextmanager
def claimed(target: Path, rights: Rights | None) -> Generator[Path]:
    """A temporary file beside ``target``, locked while this process lives, and removed at the end.

    If it is to have the ``rights`` of another, no one else may open it before it has them.
    """
    with refusals(target):
        handle, temporary = _claim(target, private=rights is not None)
        try:
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if handle is not None:
                close(handle)


def place(temporary: Path, target: Path, rights: Rights | None) -> None:
    """Rename a finished file that is safely on disk, with the rights of the file it replaces."""
    with temporary.open("r+b") as file:
        to_disk(file.fileno())
    if rights is not None:
        rights.give(temporary)
    rename_over(temporary, target)


def to_disk(handle: int) -> None:
    """Force an open file to disk; on macOS with ``F_FULLFSYNC``, which empties the disk's cache too."""
    if sys.platform == "darwin":
        with suppress(OSError):  # a disk that knows no F_FULLFSYNC, such as one on the network
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def rename_over(source: Path, target: Path) -> None:
    """Rename a file in place of another.

    Windows refuses while any program has the other open; virus scanners and indexers do for a moment.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            source.replace(target)
            return
        except PermissionError as error:
            if sys.platform != "win32":
                raise
            if time.monotonic() >= until:
                raise OSError(f"{error}. Windows replaces no open file: close it first") from error
        time.sleep(_PATIENCE / 100)


@contextmanager
def refusals(target: Path) -> Generator[None]:
    """Convert errors of the operating system to ``CheckpointError``."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}. Nothing was changed.") from error


def write_safetensors(
    path: str | os.PathLike[str],
    specs: Mapping[str, Spec],
    metadata: Mapping[str, str],
    pieces: Pieces,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a safetensors file from tensors that need not be in memory at the same time.

    Args:
        path: the file; an old one is replaced when the new one is complete.
        specs: dtype and shape of each tensor.
        metadata: strings for the header.
        pieces: called with each name, in the order of the file; yields contiguous arrays.
        check: called before the old file is replaced, which an exception prevents.
    """
    layout = arrange(specs, metadata)
    with atomic(path) as temporary, temporary.open("wb", buffering=0) as file:
        write_body(file, layout, specs, pieces)
        check()


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    """``write_safetensors`` for arrays that are in memory."""
    specs = {name: Spec(array.dtype, array.shape) for name, array in arrays.items()}
    write_safetensors(path, specs, metadata, lambda name: [np.ascontiguousarray(arrays[name])])


def write_body(file: BinaryIO, layout: Layout, specs: Mapping[str, Spec], pieces: Pieces) -> None:
    """Write a complete safetensors file, including checksums, into an open file.

    Bytes and checksums come from the same copy, block by block, so that a file is consistent even if another
    thread writes a tensor meanwhile.
    """
    _write(file, memoryview(layout.header))
    scratch = memoryview(bytearray(_BLOCK))
    unsynced, sums = 0, list[int]()
    with _Syncing(file.fileno()) as syncing:
        for name in layout.names:
            crc, count = 0, 0
            for piece in pieces(name):
                view = as_bytes(piece)
                for begin in range(0, len(view), _BLOCK):
                    block = scratch[: min(_BLOCK, len(view) - begin)]
                    block[:] = view[begin : begin + _BLOCK]
                    crc = zlib.crc32(block, crc)
                    _write(file, block)
                count, unsynced = count + len(view), unsynced + len(view)
                # Forced to disk while the next is made: left to the end, or to the system's own
                # throttling, gigabytes of dirty pages take several times as long.
                if unsynced > _SYNC_EVERY:
                    unsynced = 0
                    syncing.start()
            if count != specs[name].nbytes:
                raise AssertionError(f"{name}: {count} bytes were given, {specs[name].nbytes} announced")
            sums.append(crc)
        syncing.finish()
    file.seek(0)
    _write(file, memoryview(layout.with_sums(sums)))


class _Syncing:
    """Forces a file to disk on a thread while writing continues.

    Not an executor: those accept no work while the interpreter is shutting down, which a save may outlast.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._done: Future[None] | None = None

    def start(self) -> None:
        """Start another sync after the previous one has ended."""
        self.finish()
        done = Future[None]()
        Thread(target=self._sync, args=(done,), name="polyak-sync").start()
        self._done = done

    def finish(self) -> None:
        """Wait for the last sync; an ``OSError`` if it failed."""
        if self._done is not None:
            self._done.result()

    def _sync(self, done: Future[None]) -> None:
        try:
            done.set_result(_sync_data(self._handle))
        except OSError as error:
            done.set_exception(error)

    def __enter__(self) -> _Syncing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._done is not None:
            # After an error too: the descriptor is closed next, and may become another file's.
            wait([self._done])


def _write(file: BinaryIO, view: memoryview) -> None:
    while len(view):  # one write takes at most 2 GiB
        view = view[file.write(view) :]


def sweep(target: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote ``target``."""
    _sweep(glob.escape(str(hidden(target, ""))) + "*.part")


def sweep_all(folder: Path) -> None:
    """Remove the temporary files of all processes that were killed while they wrote into a folder."""
    _sweep(glob.escape(str(folder)) + f"/.*.{'[0-9a-f]' * 2 * _RANDOM}.part")


def _sweep(pattern: str) -> None:
    if sys.platform == "win32":  # temporary files are not locked there: a leftover looks like one in use
        return
    for name in glob.glob(pattern):
        with suppress(OSError):
            handle = os.open(name, os.O_RDWR)
            try:
                if try_lock(handle) is None:
                    os.unlink(name)
            finally:
                close(handle)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk, if the system can."""
    with suppress(OSError):  # Windows and some network file systems sync no folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            to_disk(descriptor)
        finally:
            os.close(descriptor)


def _claim(target: Path, private: bool) -> tuple[int | None, Path]:
    """A new temporary file, locked as long as this process lives."""
    mode = 0o600 if private else 0o666
    while True:
        temporary = hidden(target, f"{secrets.token_hex(_RANDOM)}.part")
        # Not by mkstemp: it makes private files, and to read the umask is to set it, for all threads.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        if sys.platform == "win32":  # which renames no open file
            os.close(handle)
            return None, temporary
        # Another writer may take it for litter between its making and its lock.
        if not isinstance(try_lock(handle), BlockingIOError) and temporary.exists():
            return handle, temporary
        close(handle)


class Rights(NamedTuple):
    """Mode and owner of a file."""

    mode: int
    user: int
    group: int

    def give(self, path: Path) -> None:
        """Apply them to another file, as far as this user may.

        Where the group cannot be preserved, the file's own group gets only the rights of all other users.
        """
        if sys.platform == "win32":
            return
        now, mode = path.stat(), self.mode
        if (now.st_uid, now.st_gid) != (self.user, self.group):
            with suppress(OSError):
                os.chown(path, -1, self.group)
            with suppress(OSError):
                os.chown(path, self.user, -1)
            if path.stat().st_gid != self.group:
                mode = mode & ~0o070 | (mode & 0o007) << 3
        path.chmod(mode)


def rights_of(*files: Path) -> Rights | None:
    """Those of the first of these files that exists."""
    for file in files:
        with suppress(OSError, ValueError):
            found = file.stat()
            return Rights(stat.S_IMODE(found.st_mode) & 0o777, found.st_uid, found.st_gid)
    return None


def real(path: str | os.PathLike[str]) -> Path:
    """The file of a path, following links, whether it exists or not."""
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    try:
        kind = os.stat(target).st_mode
    except FileNotFoundError:
        return target
    except ValueError as error:  # half a surrogate pair, or a zero byte
        raise CheckpointError(f"{str(path)!r} is not a valid file name: {error}.") from error
    if stat.S_ISDIR(kind):
        raise CheckpointError(f"{path} is a folder: name a file in it.")
    if not stat.S_ISREG(kind):
        raise CheckpointError(f"{path} is not a regular file and would be replaced by one.")
    return target


def hidden(target: Path, end: str) -> Path:
    """A hidden file beside another; a long name is shortened to its beginning and a digest."""
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[: _LONGEST - 30].decode(errors='ignore')}~{digest}"
    return target.with_name(f".{name}.{end}")
