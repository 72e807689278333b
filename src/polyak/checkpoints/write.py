"""Writing so that a killed process leaves the old file or the new one, never half of either."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyak.errors import CheckpointError


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Generator[Path]:
    """A temporary name beside ``path`` to write to; on success it takes the place of ``path``.

    The bytes are forced to disk before the rename and the folder after it, so the new file is there
    after a power cut too. On any exception the temporary file is removed and ``path`` is untouched.

    Raises:
        CheckpointError: the operating system refuses.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error}. Nothing was changed.") from error
    temporary = Path(name)
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
    with suppress(OSError):  # the file is in place; Windows and some network file systems sync no folder
        _sync_folder(target.parent)


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
