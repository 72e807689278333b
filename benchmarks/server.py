"""What does a push to a shared average cost, beside Ray's own copy of the same bytes?

    python -m benchmarks.server            # needs: pip install "./polyak[torch,server]"

In each round, in a new order, a push and ``ray.get(ray.put(…))`` of the same arrays to an actor and back to
the caller; a figure is the median over rounds. Then several workers push as fast as they can, each at its own
speed, and the staleness of their pushes is what the server counted.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np

import polyak.server
from benchmarks.report import arguments, number, table, write
from polyak.server import cluster

SIZES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "32 MiB": 1 << 25}
SHARDS = (1, 2, 4)
WORKERS, SECONDS = 4, 10.0


class Echo:
    """What Ray does alone: an actor that gets the bytes and answers."""

    def take(self, array: Any) -> int:
        return int(array.nbytes)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def pushes(size: int, shards: int, rounds: int) -> dict[str, float]:
    """Medians of a push, and of Ray's put and get of the same bytes, in seconds."""
    values = np.random.default_rng(0).standard_normal(size // 4).astype(np.float32)
    model, name, seconds = {"w": values}, f"b{size}-{shards}", {"push": list[float](), "ray": list[float]()}
    library: Any = import_module("ray")  # not earlier: with the token that the cluster asks for
    echo = library.remote(Echo).options(num_cpus=0).remote()
    folder = tempfile.TemporaryDirectory()
    with (
        folder,
        polyak.server.start({"w": values}, 0.99, folder=folder.name, name=name, shards=shards) as server,
    ):
        client, step = server.client("worker"), 0

        def push() -> None:
            nonlocal step
            step += 1
            client.push(model, step=step)

        def copy() -> None:
            library.get(echo.take.remote(library.put(values)), timeout=60)

        for _ in range(rounds):
            for kind, work in random.sample([("push", push), ("ray", copy)], 2):
                seconds[kind].append(timed(work))
        client.flush()
    library.kill(echo)
    return {kind: median(each) for kind, each in seconds.items()}


def staleness(size: int) -> dict[str, float]:
    """What the server counts when workers push at speeds of their own."""
    first = {"w": np.zeros(size // 4, np.float32)}
    folder = tempfile.TemporaryDirectory()
    with folder, polyak.server.start(first, 0.99, folder=folder.name, name="stale") as server:
        until = time.monotonic() + SECONDS

        def work(worker: int) -> None:
            client, step = server.client(f"worker-{worker}"), 0
            while time.monotonic() < until:
                step += 1
                client.push(first, step=step)
                time.sleep(0.005 * worker)
            client.flush()

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(work, range(WORKERS)))
        return server.metrics()


def main() -> None:
    """Measure, print the tables, write them with date and machine."""
    options: argparse.Namespace = arguments(__doc__, rounds=41)
    cluster.begin("b" * 64, 1 << 30)
    found = {(name, n): pushes(size, n, options.rounds) for name, size in SIZES.items() for n in SHARDS}
    figures = staleness(SIZES["1 MiB"])
    cluster.end()
    heads = [f"{n} shard{'s' * (n > 1)}" for n in SHARDS]
    cells = {
        name: [
            f"{number(one['push'], 1e3, 1)} ms, {number(one['ray'] / one['push'])} of Ray's speed"
            for n in SHARDS
            for one in [found[name, n]]
        ]
        for name in SIZES
    }
    stale = {
        "staleness of 1 MiB pushes": [
            number(figures[f"staleness_{which}"], digits=0) for which in ("median", "90_percent", "largest")
        ]
    }
    lines = [*table(heads, cells), "", *table(["median", "90 %", "largest"], stale)]
    raw = {f"{name}, {n}": one for (name, n), one in found.items()} | {"staleness": figures}
    write(
        "server", "A push to a shared average, and Ray's put and get of the same bytes;", lines, raw, options
    )


if __name__ == "__main__":
    main()
