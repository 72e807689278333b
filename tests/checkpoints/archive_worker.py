"""A training run that archives its averages and saves a state to resume from, until someone kills it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import polyak


def train(folder: Path, steps: int, every: int | str) -> None:
    """Go on from ``folder/state.safetensors`` if it is there; the model moves by a rule of the step alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    ema = polyak.EMA(model, {"short": polyak.Power(gamma=20), "long": polyak.Power(gamma=6)})
    state = folder / "state.safetensors"
    if state.exists():
        ema.load(state)
        for step in range(1, ema.step + 1):
            move(model, step)
    else:  # or what is killed before the first save below leaves snapshots of a run that nothing continues
        ema.save(state, resumable=True)
    with polyak.Archive(folder / "archive", ema, every=every, dtype="float32", keep="log") as archive:
        print("started", ema.step, flush=True)
        for step in range(ema.step + 1, steps + 1):
            move(model, step)
            ema.update()
            if step % 7 == 0:
                archive.flush()
                ema.save(state, resumable=True)
    print("done", flush=True)


def move(model: nn.Module, step: int) -> None:
    """One training step."""
    random = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor += torch.randn(tensor.shape, generator=random) / step**0.5
            else:
                tensor += 1
