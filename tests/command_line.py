"""`polyak` as a person runs it: in this process, or in one of its own where that is what is tested."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from polyak.cli import main

ENV = {"COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
POLYAK = [sys.executable, "-c", "import sys; sys.argv[0] = 'polyak'; from polyak.cli import main; main()"]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def polyak(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Done:
    """Call ``main``. Another process would spend a second or two on imports, and do the same."""
    out, err, back, status = io.StringIO(), io.StringIO(), Path.cwd(), 0
    with (
        patch.object(sys, "argv", ["polyak", *map(str, arguments)]),
        patch.object(sys.modules["__main__"], "__package__", None),  # or click calls it "python -m pytest"
        patch.dict(os.environ, ENV | environment),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            os.chdir(cwd or back)
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.chdir(back)
    return Done(status, out.getvalue(), err.getvalue())


def polyak_process(
    *arguments: str | Path,
    cwd: Path | None = None,
    block: str = "",
    input: str | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; ``block`` names a module that shall look uninstalled.

    With a PATH, such as the fixture ``warm_path``, it is the python that is found there.
    """
    code = f"import sys; sys.modules[{block!r}] = None; {POLYAK[2]}"
    python = "python" if "PATH" in environment else sys.executable
    command = [python, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | ENV | environment,
        cwd=cwd,
        input=input,
        timeout=120,
        check=False,
    )
