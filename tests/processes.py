"""Processes that begin with everything imported; and those that are killed, and whether they are gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

if "forkserver" in multiprocessing.get_all_start_methods():
    _CONTEXT = multiprocessing.get_context("forkserver")
    _CONTEXT.set_forkserver_preload(["tests.imported"])
else:
    _CONTEXT = multiprocessing.get_context("spawn")


def begun(code: str, log: Path, environment: Mapping[str, str] = MappingProxyType({})) -> BaseProcess:
    """A process that runs Python, and tells what it tells to a file.

    It is forked from one that has imported torch and the trainers, which takes eight seconds, and has started
    no thread.
    """
    process = _CONTEXT.Process(target=_run, args=(code, dict(environment), log), daemon=True)
    process.start()
    return process


def apart(code: str, *environments: Mapping[str, str]) -> list[tuple[int | None, str]]:
    """Run Python in a process for each environment, side by side; how each ended, and what it told."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(number)) for number in range(len(environments))]
        processes = [begun(code, log, given) for log, given in zip(logs, environments, strict=True)]
        for process in processes:
            process.join()
        return [(process.exitcode, log.read_text()) for process, log in zip(processes, logs, strict=True)]


def _run(code: str, environment: Mapping[str, str], log: Path) -> None:
    os.environ |= environment
    told = os.open(log, os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(told, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    exec(code, {})


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
    [(status, told)] = apart(f"from pathlib import *; from {module} import *; {call}", {})
    assert status == -signal.SIGKILL, told
