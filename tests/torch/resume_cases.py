"""The runs that are cut in two: every decay, and every option that has state of its own."""

from typing import Any

import torch
from torch import nn

import polyak

CASES: dict[str, dict[str, Any]] = {
    "constant": {"decay": 0.9},
    "half-life": {"decay": polyak.HalfLife(steps=7)},
    "samples": {"decay": polyak.HalfLife(samples=70), "every": 3},
    "debiased": {"decay": polyak.Debiased(0.9)},
    "warmup": {"decay": polyak.Warmup(0.99, after=3)},
    "ramp": {"decay": polyak.Ramp(0.99, tau=9)},
    "capped": {"decay": polyak.Capped(0.99)},
    "uniform": {"decay": polyak.Uniform()},
    "power": {"decay": polyak.Power(sigma_rel=0.1)},
    "cosine": {"decay": polyak.Cosine(0.5, 1.0, total=20)},
    "piecewise": {"decay": polyak.Piecewise([(12, 0.5), (None, 0.9)])},
    "tracks": {"decay": {"a": 0.5, "b": polyak.Power(gamma=3.0), "c": polyak.HalfLife(tokens=100)}},
    "mid-accumulation": {"decay": polyak.Warmup(0.99), "every": 4},
    "before the start": {"decay": polyak.Debiased(0.9), "start": 15, "every": 2},
    "bfloat16": {"decay": 0.95, "dtype": torch.bfloat16, "seed": 3},
    "float16 tracks": {"decay": {"a": 0.9, "b": 0.99}, "dtype": torch.float16},
    "float64": {"decay": 0.9, "dtype": torch.float64},
    "copied buffers": {"decay": 0.9, "buffers": "copy"},
}


def begin(options: dict[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer, polyak.EMA]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01), polyak.EMA(model, **options)


def advance(
    model: nn.Module, optimizer: torch.optim.Optimizer, ema: polyak.EMA, first: int, last: int
) -> None:
    for step in range(first, last):
        x = torch.randn(10, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        ema.update(samples=10, tokens=10 + step % 3)
