"""Parts of a file as files of their own: a run of bytes, and the entries of ``torch.save``'s zip archives."""

from __future__ import annotations

import io
import threading
import zipfile
import zlib

from polyak._files.source import Source
from polyak._foreign.pickle_objects import MOST
from polyak.errors import CheckpointError

_LOCAL_HEADER = 30  # bytes before the name
_PIECE = 1 << 20  # bytes summed together
# What zipfile raises of files that are no whole archive.
DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError)


class Section(Source):
    """A range of bytes of another source, which its opener closes."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        if start < 0 or start + size > source.size:
            raise CheckpointError(f"{source.name} is truncated: an item ends at {start + size:,}.")
        self.name, self.size = f"{source.name} (from byte {start:,})", size
        self.source, self.start = source, start

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        self.source.read_into(self.start + offset, buffer)
        return len(buffer)

    def close(self) -> None:
        pass


class Memory(Source):
    """A few bytes in memory, with a name for messages."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name, self.size, self._data = name, len(data), data

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self._data[offset : offset + len(buffer)]
        return len(buffer)

    def close(self) -> None:
        pass


class Entry(Section):
    """An uncompressed entry of an archive; its checksum is compared once, before the first read."""

    def __init__(self, archive: Source, start: int, info: zipfile.ZipInfo, summed: bool) -> None:
        if start + info.file_size > archive.size:
            raise CheckpointError(f"{archive.name} is damaged: its entry {info.filename} ends beyond it.")
        super().__init__(archive, start, info.file_size)
        self.name = info.filename
        self.crc = info.CRC if summed else None
        self._lock = threading.Lock()
        self._sound = not summed

    def check(self) -> None:
        """Compare its bytes with their checksum."""
        with self._lock:
            if self._sound:
                return
            crc, piece = 0, bytearray(min(_PIECE, self.size))
            for at in range(0, self.size, _PIECE):
                view = memoryview(piece)[: min(_PIECE, self.size - at)]
                self.source.read_into(self.start + at, view)
                crc = zlib.crc32(view, crc)
            if crc != self.crc:
                raise CheckpointError(
                    f"{self.source.name} is damaged: its entry {self.name} is not the one that was written. "
                    "Copy it again from its origin."
                )
            self._sound = True

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        self.check()
        return super()._read_some(offset, buffer)


class Zip:
    """The directory of an archive of ``torch.save``."""

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            with zipfile.ZipFile(Raw(source)) as archive:
                self._entries = {info.filename: info for info in archive.infolist()}
        except DAMAGED as error:
            raise CheckpointError(f"{source.name} is a damaged zip file: {error}") from error
        pickled = [name for name in self._entries if name.endswith("data.pkl")]
        if any("code/" in name or name.endswith("constants.pkl") for name in self._entries):
            raise CheckpointError(
                f"{source.name} is a TorchScript program, not weights. Load it with torch.jit.load, and save "
                "its state_dict()."
            )
        if not pickled:
            raise CheckpointError(f"{source.name} is a zip file, but not one of torch.save.")
        self.root = pickled[0][: -len("data.pkl")]
        # torch writes 0 for every entry where none is computed.
        self._summed = any(info.CRC for info in self._entries.values())

    def __contains__(self, name: str) -> bool:
        return self.root + name in self._entries

    def entry(self, name: str) -> Entry:
        """The bytes of an entry, which must be stored uncompressed to be read in place."""
        info, source = self._entries.get(self.root + name), self._source
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            why = "is missing" if info is None else "is compressed"
            raise CheckpointError(
                f"{source.name}: its entry {self.root}{name} {why}, as in no file of torch.save. Load it "
                "where it was made, and save it again."
            )
        head = source.read(info.header_offset, _LOCAL_HEADER)
        start = info.header_offset + _LOCAL_HEADER + head[26] + 256 * head[27] + head[28] + 256 * head[29]
        return Entry(source, start, info, self._summed)


class Raw(io.RawIOBase):
    """A source as a file object for ``zipfile``."""

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        # Never beyond the end: a damaged directory requests gigabytes, which io would allocate.
        left = max(0, self._source.size - self._at)
        count = left if size < 0 else min(size, left)
        if count > MOST:
            raise CheckpointError(f"{self._source.name} is damaged: its directory takes {count:,} bytes.")
        data = self._source.read(self._at, count)
        self._at += len(data)
        return data
