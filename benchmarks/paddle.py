"""What does one update cost in PaddlePaddle, beside the averages used there and beside the memory itself?

    make test-paddle                              # builds the environment
    .venv-paddle/bin/python -m benchmarks.paddle

Each round runs every contender once, in a new order; a figure is the median over rounds of (time of the
contender) / (time of copying 12 bytes per parameter with NumPy in the same round): θ and the average are
read and the average is written. After timing, all averages must be right. Peak extra memory is what the
process's resident memory grew by, at most, while a contender was made and updated in a process of its
own, over the size of the model's float32 parameters.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import paddle
from paddle import nn

from polyak.bench.sizes import Shapes, many_small, resnet50
from polyak.paddle import EMA
from tests.paddle import originals

BETA = 0.999
SHAPES: dict[str, Callable[[], Shapes]] = {"ResNet-50": resnet50, "750 small": many_small}
Contender = tuple[Callable[[], object], Callable[[], Mapping[str, paddle.Tensor]]]


class Shaped(nn.Layer):
    """Parameters of given shapes and no computation."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.weights = nn.ParameterList([self.create_parameter(list(shape)) for shape in shapes])


def ours(engine: str) -> Callable[[nn.Layer], Contender]:
    """polyak with one engine, which must be the one that runs."""

    def make(layer: nn.Layer) -> Contender:
        used = EMA(nn.Linear(2, 2), engine=engine).metrics()["engine"]
        if not used.startswith(engine):
            raise SystemExit(f"asked for {engine}, got {used}")
        ema = EMA(layer, BETA, engine=engine)
        return ema.update, lambda: ema.tracks["average"].tensors

    return make


def detection(layer: nn.Layer) -> Contender:
    """PaddleDetection's ModelEMA; its sum without the correction is begun at the model here."""
    ema = originals.model_ema()(layer, BETA, "normal")
    for name, tensor in layer.state_dict().items():
        ema.state_dict[name] = tensor.detach().clone()
    return lambda: ema.update(layer), lambda: ema.state_dict


def clas(layer: nn.Layer) -> Contender:
    """PaddleClas's ExponentialMovingAverage."""
    ema = originals.exponential_moving_average()(layer, BETA)
    return lambda: ema.update(layer), ema.module.state_dict


def loop(layer: nn.Layer) -> Contender:
    """What one writes by hand: one ``lerp_`` per parameter."""
    pairs = {name: (p.detach().clone(), p) for name, p in layer.named_parameters()}

    def update() -> None:
        with paddle.no_grad():
            for average, parameter in pairs.values():
                average.lerp_(parameter, 1 - BETA)

    return update, lambda: {name: average for name, (average, _) in pairs.items()}


MAKERS: dict[str, Callable[[nn.Layer], Contender]] = {
    "polyak, native": ours("native"),
    "polyak, ops": ours("ops"),
    "PaddleDetection": detection,
    "PaddleClas": clas,
    "loop": loop,
}


def measure(shapes: Shapes, rounds: int) -> dict[str, Any]:
    """Median ratios to the limit, and the limit itself in seconds."""
    layer = Shaped(shapes)
    first = {name: p.numpy().astype(np.float64) for name, p in layer.named_parameters()}
    contenders = {name: make(layer) for name, make in MAKERS.items()}
    for parameter in layer.parameters():
        parameter.set_value(parameter + 1)
    moved = np.zeros(3 * sum(map(int, map(np.prod, shapes))) // 2, np.float32)
    target = np.zeros_like(moved)
    times: dict[str, list[float]] = {name: [] for name in [*contenders, "limit"]}
    runs: dict[str, Callable[[], object]] = {name: update for name, (update, _) in contenders.items()}
    runs["limit"] = lambda: np.copyto(target, moved)
    for turn in range(rounds + 2):
        for name in random.Random(turn).sample(list(runs), len(runs)):
            begun = perf_counter()
            runs[name]()
            if turn >= 2:  # the first two warm caches and allocators
                times[name].append(perf_counter() - begun)
    for name, (_, averages) in contenders.items():
        for key, tensor in averages().items():
            expected = first[key] + 1 - BETA ** (rounds + 2)
            if not np.allclose(tensor.numpy(), expected, rtol=0, atol=1e-5):
                raise SystemExit(f"{name}: {key} is not the average")
    ratios = {
        name: statistics.median(t / limit for t, limit in zip(times[name], times["limit"], strict=True))
        for name in contenders
    }
    return {"ratios": ratios, "limit": statistics.median(times["limit"]), "elements": len(moved) * 2 // 3}


def peak(name: str, model: str) -> float:
    """Extra memory at most, in models, in this process: it must have done nothing else."""
    shapes = SHAPES[model]()
    layer = Shaped(shapes)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _resident("VmRSS")
    update, _ = MAKERS[name](layer)
    for _ in range(3):
        update()
    return (_resident("VmHWM") - before) / (4 * sum(map(int, map(np.prod, shapes))))


def _resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "MODEL"), help="only the peak memory of one")
    options = parser.parse_args()
    if options.peak:
        print(peak(*options.peak))
        return
    found = {model: measure(shapes(), options.rounds) for model, shapes in SHAPES.items()}
    peaks = {name: _peak_elsewhere(name, "ResNet-50") for name in MAKERS}
    lines = [
        f"Time of one update over copying 12 bytes per parameter; {_machine()}, {options.rounds} rounds, "
        f"{date.today()}.",
        "",
        "| | " + " | ".join(SHAPES) + " | peak extra memory, models |",
        "|---|" + "---:|" * (len(SHAPES) + 1),
    ]
    for name in MAKERS:
        cells = [f"{one['ratios'][name]:.2f}" for one in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {peaks[name]:.2f} |")
    limits = [f"{one['limit'] * 1e3:.2f}" for one in found.values()]
    lines.append(f"| *the limit itself, ms* | {' | '.join(limits)} | |")
    text = "\n".join(lines)
    print(text)
    stem = options.out / f"paddle-{date.today()}"
    stem.with_suffix(".md").write_text(text + "\n")
    about = {"date": str(date.today()), "machine": _machine(), "rounds": options.rounds}
    figures = {"updates": found, "peak": peaks}
    stem.with_suffix(".json").write_text(json.dumps(about | {"figures": figures}, indent=1) + "\n")


def _peak_elsewhere(name: str, model: str) -> float:
    command = [sys.executable, "-m", "benchmarks.paddle", "--peak", name, model]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return f"{processor}, {os.environ['OMP_NUM_THREADS']} thread(s), paddlepaddle {paddle.__version__}"


if __name__ == "__main__":
    main()
