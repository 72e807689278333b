"""Runs to report on, made by polyak itself: a small one with every kind of file, and logs of any length."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

import polyak
from polyak.report.environment import environment, write_environment
from polyak.select.judged import record

STEPS = 400


class Net(nn.Module):
    """Layers whose names say what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.head = nn.Linear(4, 1)


def write_run(folder: Path, seed: int = 0, steps: int = STEPS) -> Path:
    """A run with a log, an archive, two sweeps, decisions, an adaptive state and skipped updates."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = Net()
    ema = polyak.EMA(model, {"short": polyak.Power(gamma=17), "long": polyak.Power(gamma=7)})
    adaptive = polyak.EMA(model, polyak.Adaptive(low=5, high=50, points=2))
    best = polyak.BestCheckpoint(folder / "best.safetensors", mode="max")
    with (folder / "metrics.jsonl").open("w") as log, polyak.Archive(folder / "snapshots", ema, every=20):
        for step in range(1, steps + 1):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
                if step == steps // 2:
                    kept = model.head.bias.clone()
                    model.head.bias.fill_(math.nan)
            ema.update()
            adaptive.update()
            if step == steps // 2:
                with torch.no_grad():
                    model.head.bias.copy_(kept)
            if step % 20 == 0:
                raw = 0.8 - 0.5 / step + 0.02 * math.sin(step)
                row = {"step": step, "accuracy": raw, "ema_accuracy": 0.82 - 0.5 / step, "lr": 1e-3}
                seconds = {"train": 0.01 * step, "ema": 0.001 * step}
                log.write(
                    json.dumps(row | {"loss": 1 / step, "seconds": seconds, "tokens": 100 * step}) + "\n"
                )
                best.consider(ema, row["ema_accuracy"])
    adaptive.observe({"h5": 0.8, "h50": 0.9})
    ema.save(folder / "average.safetensors", "long")
    adaptive.save(folder / "state.safetensors", resumable=True)
    for at, raw in ((steps // 2, 0.78), (steps, 0.80)):
        write_sweep(folder / f"sweep-{at}", at, raw)
    write_environment(folder, environment({}, engine="native", seed=seed))
    return folder


def write_sweep(folder: Path, at: int, raw: float | None) -> Path:
    """A sweep of five half-lives, of which one failed."""
    folder.mkdir(parents=True, exist_ok=True)
    trials = [
        {"half_life": h, "metric": m, "failure": f, "error": e, "noise_gain": 1.2, "seconds": 0.1}
        for h, m, f, e in (
            (10.0, 0.80, None, 0.004),
            (30.0, 0.83 + at * 1e-5, None, 0.01),
            (60.0, 0.82, None, 0.02),
            (90.0, None, "exit status 1", None),
            (120.0, 0.81, None, 0.001),
        )
    ]
    record = {
        "format": 1,
        "run": "r",
        "step": at,
        "command": "eval {weights}",
        "mode": "max",
        "best": trials[1],
    }
    if raw is not None:
        record |= {"raw": {"file": "raw.pt", "metric": raw, "failure": None, "seconds": 0.1}}
    (folder / "sweep.json").write_text(json.dumps({**record, "best": trials[1], "trials": trials}))
    return folder


def write_log(path: Path, steps: int, spike: int | None = None) -> Path:
    """A log of raw and averaged losses at each step; at ``spike`` the raw one is 9."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for step in range(1, steps + 1):
            raw = 9.0 if step == spike else 1 + 1 / step
            file.write(f'{{"step": {step}, "loss": {raw:.5f}, "ema_loss": {1 + 0.5 / step:.5f}}}\n')
    return path


def write_checkpoints(folder: Path, ending: str) -> Path:
    """Four checkpoints of plain weights, and three averages of them, of which two were judged."""
    folder.mkdir()
    paths = [folder / f"step-{step} {ending}" for step in (100, 200, 300, 400)]
    for path in paths:
        torch.save(Net().state_dict(), path)
    for last in (2, 4):
        out = folder / f"merged-{last}.safetensors"
        polyak.average_checkpoints(paths[last - 2 : last], out)
        record(folder, "python eval.py {weights}", "max", {out: last / 10 + 0.2, paths[last - 1]: last / 10})
    polyak.average_checkpoints(paths, folder / "unjudged.safetensors", weights=[0.1, 0.2, 0.3, 0.4])
    return folder
