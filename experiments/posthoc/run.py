"""Does a synthesised average equal the one that would have been tracked?

    python -m experiments.posthoc.run           # 3 epochs of Fashion-MNIST, about a minute and a half on a CPU

One training run of the demo's network keeps two tracks and, beside them, ten other averages directly.
Archives of the two tracks, in three dtypes and at two cadences, are then asked for the ten.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import polyak
from polyak.demo.data import load
from polyak.demo.model import lenet, to_input

HERE = Path(__file__).parent
BATCH = 64
TRACKS = {"narrow": polyak.Power(sigma_rel=0.05), "wide": polyak.Power(sigma_rel=0.10)}
SNAPSHOTS = 28
DTYPES = ("float32", "float16", "bfloat16")
CADENCES = (1, 10)


def targets(steps: int) -> dict[str, polyak.Decay]:
    """Ten averages: half-lives from 3 % of the run to half of it, and relative widths around the tracks'."""
    halves = {f"half-life {h}": polyak.HalfLife(steps=h) for h in (80, 120, 200, 350, 600, 1400)}
    widths = {f"width {s}": polyak.Power(sigma_rel=s) for s in (0.04, 0.07, 0.14, 0.2)}
    return halves | widths


def train(epochs: int, seed: int, data: str, folder: Path) -> tuple[dict[int, polyak.EMA], torch.nn.Module]:
    """Train once; archives are written below ``folder``, one for each dtype and cadence."""
    images = load(data, None).train
    pixels, labels = torch.from_numpy(images[0]), torch.from_numpy(images[1])
    torch.manual_seed(seed)
    model = lenet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-4)
    kept = {every: polyak.EMA(model, TRACKS, every=every) for every in CADENCES}
    direct = {every: polyak.EMA(model, targets(steps), every=every) for every in CADENCES}
    spacing = steps // SNAPSHOTS // 10 * 10
    archives = [
        polyak.Archive(folder / f"{dtype}-{every}", ema, every=spacing, dtype=dtype, keep="all")
        for every, ema in kept.items()
        for dtype in DTYPES
    ]
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(to_input(pixels[batch])), labels[batch]).backward()
            optimizer.step()
            schedule.step()
            for ema in (*kept.values(), *direct.values()):
                ema.update()
    for archive in archives:
        archive.close()
    return direct, model


def distance(made: dict, track: dict[str, torch.Tensor], model: torch.nn.Module) -> float:
    """``‖made - tracked‖ / ‖tracked - θ‖`` over all parameters."""
    apart, size = 0.0, 0.0
    for name, theta in model.named_parameters():
        tracked = track[name].double()
        apart += float((torch.from_numpy(made[name]).double() - tracked).square().sum())
        size += float((tracked - theta.detach().double()).square().sum())
    return math.sqrt(apart / size)


def compare(direct: dict[int, polyak.EMA], model: torch.nn.Module, folder: Path) -> list[dict]:
    """Every archive asked for every target."""
    rows = []
    for every, ema in direct.items():
        for name, track in ema.tracks.items():
            row = {"target": name, "every": every}
            for dtype in DTYPES:
                begun = time.perf_counter()
                made = polyak.synthesize(folder / f"{dtype}-{every}", track.decay, max_error=math.inf)
                row |= {
                    f"{dtype}": distance(dict(made.tensors), track.tensors, model),
                    "profile error": made.error,
                    f"{dtype} gain": made.noise_gain,
                    "seconds": time.perf_counter() - begun,
                }
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        direct, model = train(options.epochs, options.seed, options.data, Path(name))
        rows = compare(direct, model, Path(name))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    settings = {"epochs": options.epochs, "seed": options.seed, "data": options.data}
    report = {"date": date.today().isoformat(), "machine": machine, **settings, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"posthoc-{report['date']}.json").write_text(json.dumps(report, indent=1) + "\n")
    print("| average asked for | every | profile error | float32 | float16 | bfloat16 |\n|---|---|---|---|---|---|")
    for row in rows:
        errors = " | ".join(f"{row[dtype]:.2%} (Σ{row[f'{dtype} gain']:.1f})" for dtype in DTYPES)
        print(f"| {row['target']} | {row['every']} | {row['profile error']:.2%} | {errors} |")


if __name__ == "__main__":
    main()
