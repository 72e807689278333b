"""How much slower is an update while another process keeps one core busy?

    python -m benchmarks.neighbour         # needs: pip install -r benchmarks/requirements.txt

As many threads as cores, so one of them has to share its core: an update that opens a parallel region for
each tensor waits for that one each time. Quiet and busy phases alternate; a figure is the median over pairs
of phases of (median time busy) / (median time quiet).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from statistics import median

from benchmarks.report import arguments, check, number, peer, polyak, run, table, write
from polyak.bench.measure import Measured

PHASES = 3
MODELS = {"750 small": "many_small", "ResNet-50": "resnet50"}


@contextmanager
def neighbour() -> Generator[None]:
    """Another process that computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)  # until it runs
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=15)
    makers = {"polyak": polyak(), **{name: peer(name) for name in ("swa_utils", "torch_ema", "loop")}}
    found: dict[str, list[tuple[Measured, Measured]]] = {head: [] for head in MODELS}
    for head, model in MODELS.items():
        for _ in range(PHASES):
            quiet = check(run(model, makers, options))
            with neighbour():
                busy = check(run(model, makers, options))
            found[head].append((quiet, busy))
    heads = [f"{head}: {what}" for head in MODELS for what in ("quiet, ms", "busy, ms", "slower")]
    rows: dict[str, list[str]] = {}
    for name in makers:
        rows[name] = []
        for pairs in found.values():
            times = [(quiet.figures[name].update, busy.figures[name].update) for quiet, busy in pairs]
            rows[name] += [number(median(quiet for quiet, _ in times), 1e3)]
            rows[name] += [number(median(busy for _, busy in times), 1e3)]
            rows[name] += [number(median(busy / quiet for quiet, busy in times))]
    write("neighbour", "An update beside a busy neighbour;", table(heads, rows), found, options)


if __name__ == "__main__":
    main()
