"""Trainings that save their best average until they are killed, and what is found each time.

python best_killer.py FOLDER KILLS SEED     Prints one JSON object: what the kills struck, and every
contradiction between the file, the log and what the training had been told.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import polyak
from polyak import BestCheckpoint


def train(path: Path, acknowledged: int) -> None:
    """Averages whose weights are their metric, each better than the last, until the process ends."""
    model = torch.nn.Linear(64, 64, bias=False)
    ema = polyak.EMA(model, decay=0.0)
    ema.run = "the run"
    best = BestCheckpoint(path, after=0)
    metric = float(best.metric or 0)
    while True:
        metric += 1
        with torch.no_grad():
            model.weight.fill_(metric)
        ema.update()
        if not best.consider(ema, metric):
            os._exit(3)
        os.write(acknowledged, f"{metric}\n".encode())


def killed(path: Path, wait: float) -> float:
    """Kill a training after so many seconds of saving; the last metric whose save it was told of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        train(path, writing)
    os.close(writing)
    with os.fdopen(reading) as told:
        first = told.readline()
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        lines = [first, *told]
    _, status = os.waitpid(child, 0)
    return float(lines[-1]) if os.WIFSIGNALED(status) else float("nan")


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill and look, again and again on one path."""
    path, rng = folder / "best.safetensors", random.Random(seed)
    struck: Counter[str] = Counter()
    wrong: list[str] = []
    for _ in range(kills):
        told = killed(path, rng.uniform(0, 0.03))
        struck["unfinished file"] += any(folder.glob(".best.safetensors.new*"))
        struck["file not in place"] += path.with_name("best.safetensors.new").exists()
        best = BestCheckpoint(path)
        values = set(polyak.load(path).tensors["weight"].flat) if best.record else set()
        if best.record is None or values != {best.metric}:
            wrong.append(f"the file holds {values}, the log says {best.record}")
        elif not told <= best.record.metric <= told + 1 or best.decisions[-1] != best.record:
            wrong.append(f"told of {told}, found {best.record}")
    print(json.dumps({"struck": struck, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
