"""Locks between processes and threads that name their holder and are released when it dies.

A lock is a separate file that exists only while it is held, so processes that only read a folder, or lock it
for other purposes, do not interfere. The system releases it when its holder dies; the next holder takes over
the remaining file and removes it. A forked child does not hold its parent's locks.

Where a disk has no locks (some network file systems) there is no exclusion.
Not the library ``filelock``: it names no holder, leaves its files behind and cannot lock an open file.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from polyak.errors import CheckpointError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL = 0.02  # seconds between two attempts
_NO_LINKS: int = getattr(os, "O_NOFOLLOW", 0)  # a lock's content is overwritten: never that of another file
_BEHIND = 1 << 30  # the byte that Windows locks: what is locked nobody else can read, so none of the content
_held: set[int] = set()  # descriptors of this process; a child must not keep their locks alive


class Lock:
    """A lock file, created when the lock is taken and removed when it is released.

    ``what``, the holder's activity ("x is being written"), and ``advice``, the way out, are for the message.
    """

    def __init__(self, path: Path, what: str, advice: str) -> None:
        self.path, self._what, self._advice = path, what, advice
        self._release: Any = None

    def take(self, patience: float) -> None:
        """Take the lock, waiting for at most this long; an ``OSError`` if the file cannot be created."""
        until = time.monotonic() + patience
        while (handle := _attempt(self.path)) is None:
            if time.monotonic() >= until:
                raise CheckpointError(f"{self._what} by {_holder(self.path)}: {self._advice}.")
            time.sleep(_POLL)
        # Also without a call of release: at the end of this object, or of the interpreter.
        self._release = weakref.finalize(self, _unlock, self.path, handle, os.getpid())

    def release(self) -> None:
        """Release the lock. No effect if it is not held, or in a forked child."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_folder(folder: Path, name: str, patience: float, what: str, advice: str) -> Lock:
    """Create a folder and take a lock in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / name, what, advice)
        lock.take(patience)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be created or written to: {error}") from error
    return lock


def try_lock(handle: int) -> OSError | None:
    """Lock an open file as long as it stays open in this process; returns the obstacle, if any."""
    try:
        if sys.platform == "win32":
            _lock_on_windows(handle)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    _held.add(handle)
    return None


def _lock_on_windows(handle: int) -> None:
    if sys.platform == "win32":
        os.lseek(handle, _BEHIND, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:  # its word for a lock that another holds
            raise BlockingIOError(*error.args) from error
        finally:
            os.lseek(handle, 0, os.SEEK_SET)


def close(handle: int) -> None:
    """Close a file that ``try_lock`` was called with."""
    _held.discard(handle)
    os.close(handle)


def _attempt(path: Path) -> int | None:
    """A locked descriptor of the file, not locked if there are no locks; None while another holds it."""
    handle = _opened(path)
    refused = try_lock(handle)
    if isinstance(refused, BlockingIOError) or not _names(path, handle):
        close(handle)  # held, or removed by its last holder after it was opened here
        return None
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(timezone.utc).isoformat(),
    }
    with suppress(OSError):  # of another user; or the disk is full
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(about).encode())
    return handle


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | _NO_LINKS)  # left by another user: it can be locked all the same


def _names(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _unlock(path: Path, handle: int, process: int) -> None:
    if os.getpid() != process:  # a forked child: its descriptor is closed, the lock its parent's
        return
    if sys.platform == "win32":  # which removes no open file, so neither this one nor the next one's
        with suppress(OSError):
            close(handle)
    with suppress(OSError):
        path.unlink()  # before it is unlocked: afterwards it may be the next one's
    if sys.platform != "win32":
        with suppress(OSError):
            close(handle)


def _holder(path: Path) -> str:
    try:
        about = json.loads(path.read_bytes()[:1000])
        return f"process {about['pid']} on {about['host']}, since {about['since'][:19]} UTC"
    except (OSError, ValueError, TypeError, LookupError):
        return "an unidentified process"


def _close_all() -> None:
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_all)
