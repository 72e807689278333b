"""What both experiments on text do with their averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import nn

import polyak

Found = TypeVar("Found")


def tracked(model: nn.Module, half_lives: Iterable[float]) -> polyak.EMA:
    """Averages ``h30``, ``h100``, … of these half-lives in steps."""
    return polyak.EMA(model, {f"h{steps:g}": polyak.Debiased(0.5 ** (1 / steps)) for steps in half_lives})


def evaluated(ema: polyak.EMA, evaluate: Callable[[nn.Module], Found]) -> dict[str, Found]:
    """What the raw weights come to, and each average."""
    ema.model.eval()
    found = {"raw": evaluate(ema.model)}
    for track in ema.tracks:
        with ema.average_parameters(track):
            found[track] = evaluate(ema.model)
    ema.model.train()
    return found
