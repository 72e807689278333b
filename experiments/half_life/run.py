"""Which half-life is best after one training run, and does an average made afterwards find it?

    python -m experiments.half_life.run         # scikit-learn's digits, 5 seeds: a minute

One run per seed, at a constant rate and with noise on the images, keeps two tracks and their snapshots. Every
half-life is then made from the snapshots and evaluated; beside it stands the same average, computed while
training.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import mean
from time import perf_counter

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import polyak
from experiments.intervals import estimate

HERE = Path(__file__).parent
HALF_LIVES = [4, 8, 16, 32, 64, 128, 256, 512, 1024]


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    )


def loss_of(model: nn.Module, tensors: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> float:
    """Loss on the digits that were not trained on, with these weights."""
    with torch.no_grad():
        return cross_entropy(
            torch.func.functional_call(model.eval(), dict(tensors), (images,)), labels
        ).item()


def run(seed: int, epochs: int, folder: Path) -> dict[str, object]:
    """Losses of the raw weights and of every half-life: made from snapshots, and computed in training."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    kept = polyak.EMA(model, {"narrow": polyak.Power(sigma_rel=0.02), "wide": polyak.Power(sigma_rel=0.10)})
    computed = polyak.EMA(model, {str(h): polyak.HalfLife(steps=h) for h in HALF_LIVES})
    began = perf_counter()
    with polyak.Archive(folder, kept, every=20) as archive:
        for _ in range(epochs):
            for batch in torch.randperm(1200).split(16):
                noisy = images[batch] + 0.5 * torch.randn_like(images[batch])
                loss = cross_entropy(model(noisy), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                kept.update()
                computed.update()
    trained, began = perf_counter() - began, perf_counter()
    held_out = images[1200:], labels[1200:]
    raw = loss_of(model, {k: v.clone() for k, v in model.state_dict().items()}, *held_out)
    made: list[float | None] = []
    for h in HALF_LIVES:
        try:
            average = polyak.synthesize(archive, polyak.HalfLife(steps=h))
        except polyak.CheckpointError:  # so short that these snapshots do not hold it
            made.append(None)
        else:
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in average.tensors.items()}
            made.append(loss_of(model, tensors, *held_out))
    return {
        "steps": kept.step,
        "raw": raw,
        "made": made,
        "computed": [loss_of(model, computed.tracks[str(h)].tensors, *held_out) for h in HALF_LIVES],
        "seconds": {"training": trained, "made": perf_counter() - began},
    }


def spread(values: list[float | None]) -> str:
    """Mean and half of its 95 % interval; a dash if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "—"
    found = estimate(known)
    return f"{found['mean']:.4f} ± {found['half']:.4f}"


def main() -> None:
    """Run every seed, print the table, write it with date and machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(seed, options.epochs, Path(folder) / str(seed)) for seed in range(5)]
    machine = f"x86_64, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}"
    rows = [f"| raw weights | | {spread([r['raw'] for r in runs])} |"]
    for i, h in enumerate(HALF_LIVES):
        made, computed = (spread([r[kind][i] for r in runs]) for kind in ("made", "computed"))
        rows.append(f"| {h:,} | {made} | {computed} |")
    seconds = {kind: mean([r["seconds"][kind] for r in runs]) for kind in ("training", "made")}
    heading = f"Test loss on digits, {runs[0]['steps']:,} steps at a constant rate on noisy images, 5 seeds"
    table = [
        "| half-life, steps | made from snapshots | computed while training |",
        "|---:|---:|---:|",
        *rows,
    ]
    took = "One training: {training:.1f} s; making and evaluating the averages: {made:.1f} s.".format(
        **seconds
    )
    text = "\n".join([f"{heading}, 95 % intervals; {machine}, {date.today()}.", "", *table, "", took])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"digits-{date.today()}"
    stem.with_suffix(".md").write_text(text + "\n")
    stem.with_suffix(".json").write_text(
        json.dumps(
            {"date": str(date.today()), "machine": machine, "half_lives": HALF_LIVES, "runs": runs}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
