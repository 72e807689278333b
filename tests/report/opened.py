"""What this process does to files below a folder, as Python's own audit sees it."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
_CHANGES += ("os.chmod", "os.utime", "shutil.rmtree", "shutil.move", "fcntl.flock", "fcntl.lockf")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Opened:
    """read: files that were opened for reading.  changed: everything else that was done."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.read, self.changed = f"{folder.resolve()}{os.sep}", list[str](), list[str]()

    def note(self, event: str, about: tuple[Any, ...]) -> None:
        path = os.fsdecode(about[0]) if about and isinstance(about[0], str | bytes | os.PathLike) else ""
        if event == "open" and path.startswith(self.folder):
            (self.changed if about[2] & _WRITES else self.read).append(path.removeprefix(self.folder))
        elif event in _CHANGES and (path.startswith(self.folder) or event.startswith("fcntl")):
            self.changed.append(f"{event} {path}")


_listening: list[Opened] = []
_hooked: list[bool] = []


def _hook(event: str, about: tuple[Any, ...]) -> None:
    for one in _listening:
        one.note(event, about)


@contextmanager
def opened(folder: Path) -> Generator[Opened]:
    """Listen. A hook stays for the life of the process, so there is one, and it hears nobody in between."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    _listening.append(one := Opened(folder))
    try:
        yield one
    finally:
        _listening.remove(one)
