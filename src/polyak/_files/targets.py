"""The file that is to be replaced: where it really is, who may read it, what a file beside it is called."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from polyak.errors import CheckpointError

_LONGEST = 100  # bytes of a name that others are made of: with what is added they stay below any limit


class Rights(NamedTuple):
    """Mode and owner of a file."""

    mode: int
    user: int
    group: int

    def give(self, path: Path) -> None:
        """Make them those of another file, as far as this user may.

        Where the group cannot be kept, the group that the file has gets no more than all others.
        """
        if os.name != "posix":
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
    """Those of the first of these files that is there."""
    for file in files:
        with suppress(OSError, ValueError):
            found = file.stat()
            return Rights(stat.S_IMODE(found.st_mode) & 0o777, found.st_uid, found.st_gid)
    return None


def real(path: str | os.PathLike[str]) -> Path:
    """The file that a path means: of a link, what it points to, there or not.

    Raises:
        CheckpointError: it is a folder, a pipe or a device.
    """
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    try:
        kind = os.stat(target).st_mode
    except FileNotFoundError:
        return target
    except ValueError as error:  # half a surrogate pair, or a zero byte
        raise CheckpointError(f"{str(path)!r} is no name for a file: {error}.") from error
    if stat.S_ISDIR(kind):
        raise CheckpointError(f"{path} is a folder: name a file in it.")
    if not stat.S_ISREG(kind):
        raise CheckpointError(f"{path} is no regular file, and what it is would be replaced by one.")
    return target


def hidden(target: Path, end: str) -> Path:
    """A hidden file beside another: of a name that is long it bears the beginning and a digest."""
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{os.fsencode(name)[: _LONGEST - 30].decode(errors='ignore')}~{digest}"
    return target.with_name(f".{name}.{end}")
