"""Processes that are killed, and whether they are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds; a zombie, which only waits for its parent, has ended."""
    for _ in range(200):
        if not _alive(pid):
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False


def check_it_kills_itself(module: str, call: str) -> None:
    """Run the call of a function of this module in a process of its own, which ends by SIGKILL."""
    code = f"from pathlib import *; from {module} import *; {call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
