"""Where bytes come from: a file of this machine or, with fsspec, any URL."""

from __future__ import annotations

import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

from polyak.errors import CheckpointError, MissingExtraError

Where: TypeAlias = str | os.PathLike[str]
T = TypeVar("T")


class Source(ABC):
    """The bytes of one file, readable at any place by several threads.

    name: what messages call it.  size: bytes.  refusals: what reading raises when it fails.
    """

    name: str
    size: int
    refusals: ClassVar[type[Exception]] = OSError

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``.

        Raises:
            CheckpointError: the bytes are not there, or the system refuses.
        """
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
        """``count`` bytes from ``offset``; nothing is allocated for bytes that are not there."""
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
        """Give the file back."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Local(Source):
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no regular file.")
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], offset)
        with self._lock:  # Windows and older macOS
            self._file.seek(offset)
            return self._file.readinto(buffer) or 0

    def close(self) -> None:
        self._file.close()


class _Remote(Source):
    refusals = Exception  # each of fsspec's drivers has errors of its own: aiohttp's, botocore's …

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self.name = url
        self._file: Any = filesystem.open(path, "rb")
        self._lock = threading.Lock()
        if self._file.size is None:
            self.close()
            raise CheckpointError(f"{url}: its server does not say how long it is. Download it first.")
        self.size = int(self._file.size)

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        with self._lock:
            self._file.seek(offset)
            return int(self._file.readinto(buffer))

    def close(self) -> None:
        self._file.close()


def is_url(where: Where) -> bool:
    """Whether this is a URL rather than a path of this machine."""
    return isinstance(where, str) and "://" in where


def open_source(where: Where) -> Source:
    """The bytes at a path or URL.

    Raises:
        CheckpointError: there is no such file, or it cannot be opened.
        MissingExtraError: a URL was given and fsspec, or its driver for this kind of URL, is missing.
    """
    if is_url(where):
        return _asked(where, lambda filesystem, path: _Remote(str(where), filesystem, path))
    try:
        return _Local(Path(where))
    except (OSError, ValueError) as error:  # ValueError for a zero byte in the name
        raise CheckpointError(f"{where} cannot be opened: {error}") from error


def is_folder(where: Where) -> bool:
    """Whether a path or URL is a folder."""
    if is_url(where):
        return _asked(where, lambda filesystem, path: bool(filesystem.isdir(path)))
    return os.path.isdir(where)  # unlike Path.is_dir it raises nothing


def inside(folder: Where, name: str) -> Where:
    """A file of a folder, which ``name`` must not leave.

    Raises:
        CheckpointError: the name is a path that leads out of the folder.
    """
    if not name or name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"):
        raise CheckpointError(f"{folder} names the file {name!r}, which lies outside of it: not read.")
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else Path(folder) / name


def beside(where: Where, name: str) -> Where:
    """A file in the same folder as another."""
    return inside(str(where).rpartition("/")[0] if is_url(where) else Path(where).parent, name)


def exists(where: Where) -> bool:
    """Whether there is a file or folder."""
    if is_url(where):
        return _asked(where, lambda filesystem, path: bool(filesystem.exists(path)))
    return os.path.exists(where)


def _asked(where: Where, question: Callable[[Any, str], T]) -> T:
    """What a driver of fsspec answers."""
    filesystem, path = _filesystem(str(where))
    try:
        return question(filesystem, path)
    except CheckpointError:
        raise
    except Exception as error:  # see _Remote.refusals
        raise CheckpointError(f"{where} cannot be opened: {error!r}") from error


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # pyright: ignore[reportUnknownVariableType]
    except ModuleNotFoundError as error:
        raise MissingExtraError("fsspec", "remote") from error
    try:
        return url_to_fs(url)  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise MissingExtraError(f"The driver for {url.split('://')[0]}:// ({error})", "remote") from error
    except ValueError as error:
        raise CheckpointError(f"{url} cannot be opened: {error}") from error
