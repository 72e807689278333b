"""Updates in children of fork, in a process of its own: ``python -m tests.torch.engines.fork_worker``.

A child has one thread and the memory of a pool that had several; it must neither hang nor average wrongly.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from polyak.torch._engines.base import Engine
from tests.torch.engines.cases import copied, native, pairs, parts, threads

SIZES = [400_000, 100_001]
BEFORE = pairs("f32", "bf16", 2, SIZES)
WEIGHTS = (0.3, 0.7)


def averaged(kernel: Engine, updates: int = 3) -> list[bytes]:
    for step in range(updates):
        kernel.update(WEIGHTS, step, True)
    return [tensor.view(torch.int16).numpy().tobytes() for tensor in parts(kernel.pairs)[:4]]


def fresh() -> Engine:
    """Made before the fork: torch's own parallel operations hang in a child."""
    return native(copied(BEFORE))


def alone() -> bool:
    """Whether this process has but one thread: a child must hire anew what it lost."""
    tasks = Path("/proc/self/task")
    return tasks.exists() and len(list(tasks.iterdir())) == 1


def in_child(check: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    with threads(1):
        expected = averaged(fresh())
    with threads(2):
        averaged(fresh())
        spare = fresh()
        if not in_child(lambda: averaged(spare) == expected and not alone()):
            return 1
        if not in_child(lambda: in_child(lambda: averaged(spare) == expected)):
            return 2
        stop = threading.Event()
        other = fresh()

        def keep_updating() -> None:
            while not stop.is_set():
                other.update(WEIGHTS, 0, True)

        busy = threading.Thread(target=keep_updating)
        busy.start()
        fine = all(in_child(lambda: averaged(spare) == expected) for _ in range(20))
        stop.set()
        busy.join()
        if not fine:
            return 3
        return 0 if averaged(spare) == expected else 4


if __name__ == "__main__":
    sys.exit(main())
