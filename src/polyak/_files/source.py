"""Sources of bytes: a local file or, with fsspec, any URL."""

from __future__ import annotations

import os
import stat
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

from polyak.errors import CheckpointError, MissingExtraError

Where: TypeAlias = str | os.PathLike[str]
T = TypeVar("T")

_OPEN = 64  # local files open at once; macOS allows a process 256 descriptors


class Source(ABC):
    """The bytes of one file, readable at any offset by several threads.

    name: in messages.  size: bytes.  refusals: the exceptions of a failed read.
    """

    name: str
    size: int
    refusals: ClassVar[type[Exception]] = OSError

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        if offset < 0 or offset + len(buffer) > self.size:
            raise CheckpointError(
                f"{self.name} is truncated: {offset + len(buffer):,} bytes are needed, "
                f"{self.size:,} are there. Copy it again."
            )
        try:
            done = 0
            while done < len(buffer):
                got = self._read_some(offset + done, buffer[done:])
                if got == 0:
                    raise CheckpointError(f"{self.name} became shorter while it was read. Copy it again.")
                done += got
        except CheckpointError:
            raise
        except self.refusals as error:
            raise CheckpointError(f"{self.name} cannot be read: {error}") from error

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``; nothing is allocated beyond the end."""
        if offset + count > self.size:
            self.read_into(self.size, memoryview(bytearray(1)))
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    @abstractmethod
    def _read_some(self, offset: int, buffer: memoryview) -> int:
        """Read at most ``len(buffer)`` bytes; 0 at the end."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Local(Source):
    """A local file, which need not stay open: a merge may read a thousand of them."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a regular file.")
        self._path = path.absolute()
        self._closed = False
        self._lock = threading.Lock()
        self._identity: tuple[int, ...] | None = None
        with _FILES.lend(self) as file:
            self.size = os.fstat(file.fileno()).st_size

    def open(self) -> FileIO:
        """Reopen the file; an error if it was replaced."""
        if self._closed:
            raise ValueError(f"{self.name} was closed")
        file = FileIO(os.fspath(self._path), "rb")
        about = os.fstat(file.fileno())
        identity = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if identity != (self._identity or identity):
            file.close()
            raise CheckpointError(f"{self.name} was replaced or changed while it was read. Start again.")
        self._identity = identity
        return file

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        with _FILES.lend(self) as file:
            if sys.platform != "win32" and hasattr(os, "preadv"):
                return os.preadv(file.fileno(), [buffer], offset)
            with self._lock:  # Windows and older macOS
                file.seek(offset)
                return file.readinto(buffer) or 0

    def close(self) -> None:
        self._closed = True
        _FILES.drop(self)


class _OpenFiles:
    """The open files; beyond ``_OPEN`` the least recently read one is closed until it is needed."""

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[_Local, FileIO] = WeakKeyDictionary()
        self._lent: Counter[_Local] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, source: _Local) -> Generator[FileIO]:
        """The open file; it stays open at least until the block ends."""
        with self._lock:
            file = self._files.pop(source, None) or source.open()
            self._files[source] = file  # last, for it was read last
            self._lent[source] += 1
            over = len(self._files) - _OPEN
            if over > 0:
                for idle in [other for other in self._files if other not in self._lent][:over]:
                    self._files.pop(idle).close()
        try:
            yield file
        finally:
            with self._lock:
                self._lent[source] -= 1
                if not self._lent[source]:
                    del self._lent[source]

    def drop(self, source: _Local) -> None:
        """Close a file that is no longer needed."""
        with self._lock:
            file = self._files.pop(source, None)
        if file is not None:
            file.close()


_FILES = _OpenFiles()


class _Remote(Source):
    refusals = Exception  # each of fsspec's drivers has errors of its own: aiohttp's, botocore's …

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self.name = url
        self._file: Any = filesystem.open(path, "rb")
        self._lock = threading.Lock()
        if self._file.size is None:
            self.close()
            raise CheckpointError(f"{url}: its server does not report its length. Download it first.")
        self.size = int(self._file.size)

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        with self._lock:
            self._file.seek(offset)
            return int(self._file.readinto(buffer))

    def close(self) -> None:
        self._file.close()


def is_url(where: Where) -> TypeGuard[str]:
    """Whether this is a URL rather than a local path."""
    return isinstance(where, str) and "://" in where


def open_source(where: Where) -> Source:
    """The bytes at a path or URL.

    Raises:
        CheckpointError: there is no such file, or it cannot be opened.
        MissingExtraError: a URL was given and fsspec, or its driver for this kind of URL, is missing.
    """
    if is_url(where):
        return _on_filesystem(where, lambda filesystem, path: _Remote(where, filesystem, path))
    try:
        return _Local(Path(where))
    except (OSError, ValueError) as error:  # ValueError for a zero byte in the name
        raise CheckpointError(f"{where} cannot be opened: {error}") from error


def is_folder(where: Where) -> bool:
    """Whether a path or URL is a folder."""
    if is_url(where):
        return _on_filesystem(where, lambda filesystem, path: bool(filesystem.isdir(path)))
    return os.path.isdir(where)  # unlike Path.is_dir it raises nothing


def inside(folder: Where, name: str) -> Where:
    """A file of a folder, which ``name`` must not leave."""
    if not name or name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise CheckpointError(f"{folder} names the file {name!r}, which lies outside of it: not read.")
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


def beside(where: Where, name: str) -> Where:
    """A file in the same folder as another."""
    return inside(where.rpartition("/")[0] if is_url(where) else Path(where).parent, name)


def exists(where: Where) -> bool:
    """Whether there is a file or folder."""
    if is_url(where):
        return _on_filesystem(where, lambda filesystem, path: bool(filesystem.exists(path)))
    return os.path.exists(where)


def _on_filesystem(url: str, call: Callable[[Any, str], T]) -> T:
    """Call a function with the driver of fsspec for a URL, and the path on its filesystem."""
    try:
        core = import_module("fsspec.core")
    except ModuleNotFoundError as error:
        raise MissingExtraError("fsspec", "remote") from error
    try:
        return call(*core.url_to_fs(url))
    except CheckpointError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"The driver for {url.split('://')[0]}:// ({error})", "remote") from error
    except Exception as error:  # see _Remote.refusals
        raise CheckpointError(f"{url} cannot be opened: {error!r}") from error
