"""Does a synthesised average equal the one that would have been tracked?

    python -m experiments.posthoc.run           # 3 epochs of Fashion-MNIST, about a minute on a CPU

One training run of the demo's network keeps two tracks and, beside them, twelve other averages directly.
Archives of the two tracks, in three dtypes and at two cadences, are then asked for the twelve. The last
column mixes the float32 snapshots by the nearest profile instead, as the paper on post-hoc EMA does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import polyak
from polyak.demo.data import load
from polyak.demo.in_torch import lenet, to_input

HERE = Path(__file__).parent
BATCH = 64
TRACKS = {"narrow": polyak.Power(sigma_rel=0.05), "wide": polyak.Power(sigma_rel=0.10)}
SNAPSHOTS = 28
DTYPES = ("float32", "float16", "bfloat16")
CADENCES = (1, 10)


def targets(steps: int) -> dict[str, polyak.Decay]:
    """Ten averages: half-lives from a 24th of the run to half of it, and widths around the tracks' own.

    And two narrower ones, to show where float16 begins to tell.
    """
    shares = (1 / 48, 1 / 24, 1 / 16, 1 / 10, 1 / 6, 1 / 4, 1 / 2)
    halves = {f"half-life {round(steps * s)}": polyak.HalfLife(steps=round(steps * s)) for s in shares}
    widths = {f"width {s}": polyak.Power(sigma_rel=s) for s in (0.04, 0.06, 0.08, 0.14, 0.2)}
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


def nearest_profile(folder: Path, decay: polyak.Decay, every: int) -> dict[str, np.ndarray]:
    """``min Σₜ (Σᵢ cᵢ·wᵢ(t) - w*(t))²`` with ``Σc = 1``: Karras et al. 2024, §3.2, given θ₀ as well."""
    snapshots = polyak.Archive(folder).snapshots
    at = snapshots[-1].step
    weights = [np.pad(w, (0, at + 1 - len(w))) for w in (s.header.profile.weights() for s in snapshots)]
    target = polyak.Profile.from_decay(decay, at, every=every).weights()
    target = np.pad(target, (0, at + 1 - len(target)))
    rest = np.linalg.lstsq(np.transpose(np.array(weights[1:]) - weights[0]), target - weights[0])[0]
    c = [1 - rest.sum(), *rest]
    tensors = [polyak.load(s.path).tensors for s in snapshots]
    return {n: sum(a * t[n].astype(float) for a, t in zip(c, tensors, strict=True)) for n in tensors[0]}


def compare(direct: dict[int, polyak.EMA], model: torch.nn.Module, folder: Path) -> list[dict]:
    """Every archive asked for every target."""
    rows = []
    for every, ema in direct.items():
        for name, track in ema.tracks.items():
            row = {"target": name, "every": every}
            for dtype in DTYPES:
                made = polyak.synthesize(folder / f"{dtype}-{every}", track.decay, max_error=math.inf)
                error = distance(dict(made.tensors), track.tensors, model)
                row[dtype] = {"expected": made.error, "error": error, "noise gain": made.noise_gain}
            made = nearest_profile(folder / f"float32-{every}", track.decay, every)
            row["nearest profile"] = distance(made, track.tensors, model)
            rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """The rows in Markdown: expected and found error for each dtype."""
    lines = [f"| average asked for | every | {' | '.join(DTYPES)} | nearest profile |", "|---" * 6 + "|"]
    for row in rows:
        cells = [f"{row[d]['error']:.2%} (expected {row[d]['expected']:.2%})" for d in DTYPES]
        lines.append(
            f"| {row['target']} | {row['every']} | {' | '.join(cells)} | {row['nearest profile']:.2%} |"
        )
    return "\n".join(lines)


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
    page = f"# {report['date']}, {machine}, {settings}\n\n{table(rows)}\n"
    (options.out / f"posthoc-{report['date']}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
