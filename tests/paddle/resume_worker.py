"""Trains and saves every case: ``python -m tests.paddle.resume_worker FOLDER [STEP]``, killed in STEP."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

import polyak
from polyak.paddle import EMA, ExponentialMovingAverage

STEPS, EVERY = 23, 5

CASES: dict[str, dict[str, Any]] = {
    "constant": {"decay": 0.9},
    "tracks": {"decay": {"a": 0.5, "b": polyak.Power(gamma=3.0)}},
    "mid-accumulation": {"decay": polyak.Warmup(0.99), "every": 4},
    "bfloat16": {"decay": 0.95, "dtype": "bfloat16", "seed": 3},
    "split": {"decay": 0.95, "dtype": "split"},
    "compensated": {"decay": 0.95, "compensated": True},
    "ops": {"decay": 0.9, "engine": "ops"},
    "ExponentialMovingAverage": {"decay": 0.95, "bias_correction": True},
    "ExponentialMovingAverage, bfloat16": {"decay": 0.95, "dtype": "bfloat16"},
}


class Run:
    """A layer in training and its average."""

    def __init__(self, case: str) -> None:
        paddle.seed(0)
        with paddle.utils.unique_name.guard():  # names as in a process of its own
            self.layer = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1D(8), nn.ReLU(), nn.Linear(8, 2))
            self.optimizer = paddle.optimizer.AdamW(0.01, parameters=self.layer.parameters())
        self.listed = case.startswith("Exponential")
        if self.listed:
            self.average = ExponentialMovingAverage(self.layer.parameters(), **CASES[case])
            self.ema = self.average.ema
        else:
            self.ema = EMA(self.layer, **CASES[case])

    def step(self) -> None:
        paddle.seed(100 + self.ema.step)
        self.layer(paddle.rand([10, 3])).square().mean().backward()
        self.optimizer.step()
        self.optimizer.clear_grad()
        self.ema.update()

    def save(self, folder: Path) -> None:
        """All files of one step in a folder that appears whole."""
        folder.with_suffix(".new").mkdir(parents=True)
        new = folder.with_suffix(".new")
        paddle.save(self.layer.state_dict(), str(new / "layer.pdparams"))
        paddle.save(self.optimizer.state_dict(), str(new / "optimizer.pdopt"))
        if self.listed:
            paddle.save(self.average.state_dict(), str(new / "ema.pdparams"))
        else:
            self.ema.save(new / "ema.safetensors", resumable=True)
        new.rename(folder)

    def load(self, folder: Path) -> None:
        self.layer.set_state_dict(paddle.load(str(folder / "layer.pdparams")))
        self.optimizer.set_state_dict(paddle.load(str(folder / "optimizer.pdopt")))
        if self.listed:
            assert not self.average.set_state_dict(paddle.load(str(folder / "ema.pdparams")))
        else:
            assert not self.ema.load(folder / "ema.safetensors")


def saved(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix != ".new")


def train(root: Path, die: int | None) -> None:
    runs = {case: Run(case) for case in CASES}
    for case, run in runs.items():
        if saved(root / case):
            run.load(saved(root / case)[-1])
    while (step := max(run.ema.step for run in runs.values())) < STEPS:
        for case, run in runs.items():
            run.step()
            if die == step + 1 and case == list(CASES)[4]:  # some are a step ahead of others
                os.kill(os.getpid(), signal.SIGKILL)
            if run.ema.step % EVERY == 0 or run.ema.step == STEPS:
                run.save(root / case / f"{run.ema.step:02}")


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
