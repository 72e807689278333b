"""What rounding does to an average: where it stops, which way it drifts, how much it trembles.

    python -m experiments.rounding.run           # prints the tables; --readme keeps them in README.md

Everything at β = 0.9999. Errors are against an average of the same θ kept in float64.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polyak

HERE = Path(__file__).parent
BETA = 0.9999
TAU = 1 / (1 - BETA)
SIZE = 20_000
# What polyak.EMA is given for each storage, and the distance of its numbers between 1 and 2.
STORES: dict[str, tuple[dict[str, Any], float]] = {
    "float32": ({}, 2**-23),
    "compensated": ({"compensated": True}, 2**-46),
    "bfloat16": ({"dtype": torch.bfloat16}, 2**-7),
    "float16": ({"dtype": torch.float16}, 2**-10),
    "split": ({"dtype": "split"}, 2**-15),
}
RANDOMLY = ("bfloat16", "float16", "split")


class Weights(nn.Module):
    """One parameter."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(values.clone())


def between(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, SIZE, dtype=torch.float64)


def value(ema: polyak.EMA) -> Tensor:
    return ema.tracks["average"].value("theta").double()


def constant(steps: int) -> list[str]:
    """θ is 0 once and then constant between 1 and 2: how far from it averages stop."""
    target = between(1, 2)
    model = Weights(torch.zeros(SIZE))
    kept = {name: polyak.EMA(model, BETA, **STORES[name][0]) for name in ("float32", "compensated")}
    theta, written = target.float(), torch.zeros(SIZE)
    with torch.no_grad():
        model.theta.copy_(theta)
        for _ in range(steps):
            for ema in kept.values():
                ema.update()
            written = BETA * written + (1 - BETA) * theta
    rows = {f"polyak, {name}": value(ema) for name, ema in kept.items()}
    rows["`b*a + (1-b)*p` in float32"] = written.double()
    left = BETA**steps
    lines = [
        f"A constant θ, averages from 0, {steps:,} steps: (avg-θ)/θ. Exact would be {-left:.1e}.",
        "",
        "| | mean | largest |",
        "|---|---:|---:|",
    ]
    for name, average in rows.items():
        off = (average - theta) / theta
        lines.append(f"| {name} | {off.mean():+.1e} | {off.abs().max():.1e} |")
    return lines


def resting(steps: int) -> list[str]:
    """θ trembles by 1 % about a constant, where averages begin: which way they drift."""
    centre = between(1, 2)
    generator = torch.Generator().manual_seed(0)
    around = [
        (centre * (1 + 0.01 * torch.randn(SIZE, generator=generator, dtype=torch.float64))).float()
        for _ in range(64)
    ]
    model = Weights(centre.float())
    ema, written, exact = polyak.EMA(model, BETA), centre.float(), centre.clone()
    with torch.no_grad():
        for t in range(steps):
            theta = around[t % len(around)]
            model.theta.copy_(theta)
            ema.update()
            written = BETA * written + (1 - BETA) * theta
            exact.lerp_(theta.double(), 1 - BETA)
    lines = [
        f"θ within 1 % of where averages begin, {steps:,} steps: relative error.",
        "",
        "| | mean error | noise |",
        "|---|---:|---:|",
    ]
    for name, average in {"polyak, float32": value(ema), "`b*a + (1-b)*p` in float32": written}.items():
        off = (average.double() - exact) / exact
        lines.append(f"| {name} | {off.mean():+.1e} | {off.std():.1e} |")
    return lines


def moving(steps: int, dtype: torch.dtype) -> list[str]:
    """θ stays d = 5 % ahead of its average: ``θₜ = u·(1 + d + d·t/τ)`` with u from 1 to 1.8."""
    u, d = between(1, 1.8), 0.05
    model = Weights(u.to(dtype))
    exact = model.theta.detach().double()
    kept = {name: polyak.EMA(model, BETA, **words) for name, (words, _) in STORES.items()}
    with torch.no_grad():
        for t in range(steps):
            model.theta.copy_(u * (1 + d + d * t / TAU))
            for ema in kept.values():
                ema.update()
            exact.lerp_(model.theta.double(), 1 - BETA)
    ahead = (model.theta.detach().double() - exact).abs()
    # The formula is for many time constants; after one, so much of the variance is there.
    grown = math.sqrt(1 - math.exp(-2 * steps / TAU))
    name = str(dtype).removeprefix("torch.")
    lines = [
        f"A moving θ in {name}, {steps:,} steps: error relative to the average. Expected: "
        f"√(|θ-avg|·ulp/2), {grown:.2f} of it after so many steps.",
        "",
        "| average in | mean error | noise | expected |",
        "|---|---:|---:|---:|",
    ]
    for store, (_, ulp) in STORES.items():
        off = (value(kept[store]) - exact) / exact
        noise = float((off - off.mean()).square().mean().sqrt())
        formula = grown * float((ahead * ulp / 2 / exact.square()).mean().sqrt())
        expected = f"{formula:.1e}" if store in RANDOMLY else "not random"
        lines.append(f"| {store} | {off.mean():+.1e} | {noise:.1e} | {expected} |")
    return lines


def main() -> None:
    """Print the tables; keep them in the README if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="write them below ## Output in README.md")
    options = parser.parse_args()
    parts: list[Callable[[], list[str]]] = [
        lambda: constant(200_000),
        lambda: resting(100_000),
        lambda: moving(10_000, torch.float32),
        lambda: moving(10_000, torch.bfloat16),
    ]
    machine = f"{platform.machine()} CPU, torch {torch.__version__}, {date.today()}"
    text = "\n\n".join(["\n".join(part()) for part in parts]) + "\n"
    print(f"{machine}\n\n{text}")
    if options.readme:
        page = HERE / "README.md"
        head = page.read_text().partition("## Output\n")[0]
        page.write_text(f"{head}## Output\n\n{machine}\n\n{text}")


if __name__ == "__main__":
    main()
