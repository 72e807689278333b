"""What does one update cost, beside the libraries people use and beside the memory itself?

    python -m benchmarks.update            # needs: pip install -r benchmarks/requirements.txt

Each round runs every contender once, in a new order; a figure is the median over rounds of
(time of the contender) / (time of one ``lerp_`` over flat float32 buffers of as many elements in the
same round), so a noisy neighbour hits both. After timing, all averages must agree.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import polyak
from benchmarks.shapes import SHAPES, Shaped

DECAY = 0.999
Contender = tuple[Callable[[], object], Callable[[], list[Tensor]]]


def ours(policy: str) -> Callable[[nn.Module], Contender]:
    """polyak under one policy for parameters that are not finite."""

    def make(model: nn.Module) -> Contender:
        ema = polyak.EMA(model, DECAY, on_nonfinite=policy)
        return ema.update, lambda: list(ema.tracks["average"].tensors.values())

    return make


def swa_utils(model: nn.Module) -> Contender:
    """torch.optim.swa_utils with the multi-tensor function."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    averaged.update_parameters(model)  # its first call copies
    return lambda: averaged.update_parameters(model), lambda: list(averaged.module.parameters())


def timm(model: nn.Module) -> Contender:
    """timm's ModelEmaV3."""
    from tests.shims import torchvision_without_ops

    torchvision_without_ops()
    from timm.utils import ModelEmaV3

    averaged = ModelEmaV3(model, decay=DECAY)
    return lambda: averaged.update(model), lambda: list(averaged.module.parameters())


def ema_pytorch(model: nn.Module) -> Contender:
    """ema-pytorch with its multi-tensor path, no warm-up."""
    from ema_pytorch import EMA

    averaged = EMA(model, beta=DECAY, update_after_step=-1, update_every=1, min_value=DECAY, use_foreach=True)
    averaged.update()
    averaged.update()  # its first calls copy
    return averaged.update, lambda: list(averaged.ema_model.parameters())


def torch_ema(model: nn.Module) -> Contender:
    """torch_ema."""
    from torch_ema import ExponentialMovingAverage

    averaged = ExponentialMovingAverage(model.parameters(), decay=DECAY, use_num_updates=False)
    return averaged.update, lambda: averaged.shadow_params


def tutorial(model: nn.Module) -> Contender:
    """The loop people write by hand."""
    averaged = copy.deepcopy(model)

    def update() -> None:
        with torch.no_grad():
            for e, p in zip(averaged.parameters(), model.parameters(), strict=True):
                e.copy_(DECAY * e + (1 - DECAY) * p)

    return update, lambda: list(averaged.parameters())


CONTENDERS: dict[str, Callable[[nn.Module], Contender]] = {
    "polyak": ours("skip"),
    "polyak, unchecked": ours("ignore"),
    "swa_utils": swa_utils,
    "timm ModelEmaV3": timm,
    "ema-pytorch": ema_pytorch,
    "torch_ema": torch_ema,
    "hand-written loop": tutorial,
}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def measure(shapes: list[tuple[int, ...]], rounds: int) -> tuple[dict[str, float], float]:
    """Median ratio to the limit of each contender, and the limit's own median in seconds."""
    model = Shaped(shapes)
    size = sum(p.numel() for p in model.parameters())
    flat, theta = torch.zeros(size), torch.randn(size)
    made = {name: make(model) for name, make in CONTENDERS.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)  # from here on averages and parameters differ
    ratios: dict[str, list[float]] = {name: [] for name in made}
    limits: list[float] = []
    order = list(made)
    for done in range(rounds + 2):
        random.Random(done).shuffle(order)
        limit = timed(lambda: flat.lerp_(theta, 1 - DECAY))
        seconds = {name: timed(made[name][0]) for name in order}
        if done >= 2:  # the first rounds allocate and compile
            limits.append(limit)
            for name in order:
                ratios[name].append(seconds[name] / limit)
    first, *others = [averages() for _, averages in made.values()]
    for other, name in zip(others, list(made)[1:], strict=True):
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(
                a, b.detach(), rtol=1e-4, atol=1e-5, msg=f"{name} averaged something else"
            )
    return {name: statistics.median(r) for name, r in ratios.items()}, statistics.median(limits)


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table: dict[str, dict[str, float]] = {}
    limits: dict[str, float] = {}
    for name, shapes in SHAPES.items():
        table[name], limits[name] = measure(shapes(), options.rounds)
    machine = f"{platform.machine()} CPU, {options.threads} thread(s), torch {torch.__version__}"
    lines = [
        f"Time of one update over one `lerp_` on flat float32 buffers; {machine}, {date.today()}.",
        "",
        "| | " + " | ".join(table) + " |",
        "|---|" + "---:|" * len(table),
        *(f"| {c} | " + " | ".join(f"{table[n][c]:.2f}" for n in table) + " |" for c in CONTENDERS),
        "| *the limit itself, ms* | " + " | ".join(f"{limits[n] * 1e3:.2f}" for n in table) + " |",
    ]
    print("\n".join(lines))
    options.out.mkdir(exist_ok=True)
    stem = options.out / f"update-{date.today()}"
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    stem.with_suffix(".json").write_text(
        json.dumps(
            {"date": str(date.today()), "machine": machine, "ratios": table, "limit_s": limits}, indent=1
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
