"""A run of bytes of a file, as a file of its own."""

from __future__ import annotations

from polyak._files.source import Source
from polyak.errors import CheckpointError


class Section(Source):
    """Some bytes of another source, which stays open as long as its owner likes.

    Args:
        whole: the source.
        start: the first byte there.
        size: how many.

    Raises:
        CheckpointError: they are not all there.
    """

    def __init__(self, whole: Source, start: int, size: int) -> None:
        if start < 0 or start + size > whole.size:
            raise CheckpointError(f"{whole.name} is truncated: an item ends at {start + size:,}.")
        self.name, self.size = f"{whole.name} (from byte {start:,})", size
        self._whole, self._start = whole, start

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        self._whole.read_into(self._start + offset, buffer)
        return len(buffer)

    def close(self) -> None:
        pass


class Memory(Source):
    """A few bytes in memory.

    Args:
        name: what messages call them.
        data: the bytes.
    """

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self._data = name, len(data), data

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self._data[offset : offset + len(buffer)]
        return len(buffer)

    def close(self) -> None:
        pass
