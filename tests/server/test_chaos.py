"""Workers, shards and the ledger are killed: each acknowledged push is in the average exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import polyak
from polyak.server import cluster, start

HERE = Path(__file__).parent
WORKERS, PUSHES = 3, 80


def begun(address: str, token: str, name: str, worker: int, folder: Path) -> subprocess.Popen[bytes]:
    first = worker * PUSHES
    arguments = [address, name, f"worker-{worker}", str(first), str(first + PUSHES - 1)]
    command = [sys.executable, str(HERE / "worker.py"), *arguments, str(folder / f"log-{worker}")]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with (folder / f"errors-{worker}").open("ab") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def pid_of(actor: Any) -> int:
    """Of its process; an actor that was killed just before gives no answer until it runs again."""
    import ray
    import ray.exceptions

    library: Any = ray  # its types are of little use here
    until = time.monotonic() + 60
    while True:
        try:
            return library.get(actor.__ray_call__.remote(_pid), timeout=60)
        except ray.exceptions.ActorUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _pid(_: object) -> int:
    import os

    return os.getpid()


def acknowledged(folder: Path) -> list[int]:
    """The last acknowledged push of each worker."""
    logs = [folder / f"log-{worker}" for worker in range(WORKERS)]
    return [int((log.read_text().split() or ["-1"])[-1]) if log.exists() else -1 for log in logs]


def kill(name: str) -> None:
    os.kill(pid_of(cluster.find(name)), signal.SIGKILL)


def test_each_acknowledged_push_is_counted_once_whatever_is_killed(
    address: str, token: str, name: str, tmp_path: Path
) -> None:
    first = {"marks": np.zeros(WORKERS * PUSHES, np.float32)}
    server = start(first, polyak.Uniform(), folder=tmp_path / "average", name=name, shards=2, every=0.3)
    running = [begun(address, token, name, worker, tmp_path) for worker in range(WORKERS)]
    # Just after acknowledgements: shards, the ledger, both, and a worker in the middle of a push.
    plan: list[tuple[str, ...]] = [
        ("0",),
        ("ledger",),
        ("worker", "1"),
        ("1",),
        ("0", "1"),
        ("worker", "2"),
        ("ledger", "0"),
        ("worker", "0"),
    ]
    seen, killed = acknowledged(tmp_path), 0
    until = time.monotonic() + 240
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        now = acknowledged(tmp_path)
        if now != seen and killed < len(plan):
            what = plan[killed]
            if what[0] == "worker":
                worker = int(what[1])
                if running[worker].poll() is None:
                    running[worker].kill()
                    running[worker].wait()
                    running[worker] = begun(address, token, name, worker, tmp_path)
            else:
                for one in what:
                    kill(f"{name}/{one}")
            killed, seen = killed + 1, acknowledged(tmp_path)
        time.sleep(0.02)
    errors = "\n".join((tmp_path / f"errors-{worker}").read_text() for worker in range(WORKERS))
    assert [process.poll() for process in running] == [0] * WORKERS, errors
    assert killed >= 6
    assert server.metrics()["returns_to_disk"] >= 1
    last = server.stop()
    counts = last.tensors["marks"] * last.version
    np.testing.assert_allclose(counts, 1.0, atol=1e-4)
    assert last.version == WORKERS * PUSHES
    assert last.profile is not None
    np.testing.assert_allclose(last.profile.weights(), [0.0, 1.0], atol=1e-9)
