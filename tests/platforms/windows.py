"""As much of Windows as can be had on Linux: what its Python lacks, and no open file is replaced.

    python tests/platforms/windows.py JOB

runs a job of ``test_windows.py`` after taking away what is not there on Windows and putting in what is.
It is no Windows: paths, consoles and processes are Linux's.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

LACKING = ("preadv", "fdatasync", "register_at_fork", "killpg", "sysconf", "getuid", "chown", "O_NOFOLLOW")


def become() -> None:
    """From now on, in this process, polyak finds itself on Windows. Frameworks are to be imported before."""
    import fcntl

    for name in LACKING:
        delattr(os, name)
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    sys.modules["msvcrt"] = _msvcrt(fcntl)
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, _refusing(getattr(os, name)))
    os.open = _no_folders(os.open)  # type: ignore[assignment]
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # the other is a removed file that is still open
    sys.platform = "win32"


def _msvcrt(fcntl: Any) -> ModuleType:
    """``locking`` of a byte, which belongs to the open file and ends with it, as on Windows."""
    module: Any = ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (module.LK_NBLCK, 1)
        assert os.lseek(handle, 0, os.SEEK_CUR) > 1 << 20, "a locked byte cannot be read: none of the content"
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error

    module.locking = locking
    return module


def _opened(path: Any) -> bool:
    """Whether any process has the file open."""
    try:
        about = os.stat(path)
    except OSError:
        return False
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ends meanwhile, or is another user's
            for link in os.listdir(process / "fd"):
                with suppress(OSError):
                    if os.path.samestat(os.stat(process / "fd" / link), about):
                        return True
    return False


def _refusing(call: Callable[..., None]) -> Callable[..., None]:
    def refuse(*paths: Any, **options: Any) -> None:
        for path in paths:
            if _opened(path):
                raise PermissionError(errno.EACCES, "[WinError 32] used by another process", str(path))
        call(*paths, **options)

    return refuse


def _no_folders(call: Callable[..., int]) -> Callable[..., int]:
    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return call(path, *arguments, **options)

    return refuse


if __name__ == "__main__":
    import socket  # noqa: F401
    import subprocess  # noqa: F401 these look at the platform while they are imported
    import warnings

    import numpy  # noqa: F401

    text = Path(sys.argv[1]).read_text()
    if "import torch" in text:
        import torch  # noqa: F401
    warnings.simplefilter("error")
    become()
    exec(compile(text, sys.argv[1], "exec"), {"__name__": "__main__"})
