"""How much longer does a whole training step take with an average kept inline, overlapped or offloaded?

    python -m benchmarks.beside --device cuda

Each way trains its own copy of the model with an EMA attached to its optimizer. A round runs ten steps of
every way in a new order and waits for the device once, at the end of the ten: what can run under the next
forward pass does. Figures are medians over rounds of (ten steps with the average) / (ten without), and the
time that the training's thread spends in the optimizer's step and the update. On a CPU updates run inline, so
this shows one way only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import nn

import polyak
from benchmarks.report import arguments, number, table, write
from benchmarks.training import of_timm
from polyak.bench.shapes import MODELS, Workload

STEPS = 10
WAYS: dict[str, dict[str, Any] | None] = {
    "no average": None,
    "inline": {},
    "overlap": {"overlap": True},
    "offload": {"device": "cpu"},
    "offload and overlap": {"device": "cpu", "overlap": True},
}
ON_CPU = {"LeNet": (MODELS["lenet"], 32)}
ON_GPU = {
    "ResNet-50": (of_timm("resnet50", 224), 224),
    "ViT-B": (of_timm("vit_base_patch16_224", 224), 224),
}


class Run:
    """A model in training, with an average or without."""

    def __init__(
        self, work: Workload, side: int, device: torch.device, options: dict[str, Any] | None
    ) -> None:
        self._device, self._model = device, work.model.to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._images = torch.randn(64, 3, side, side, device=device)
        self._labels = torch.randint(10, (64,), device=device)
        self.updates: list[float] = []
        self.ema = None if options is None else polyak.EMA(self._model, 0.9999, **options)
        if self.ema is not None:
            self.ema.attach(self._optimizer)
            self._optimizer.register_step_pre_hook(lambda *_: self.updates.append(-time.perf_counter()))
            self._optimizer.register_step_post_hook(lambda *_: self._end())

    def _end(self) -> None:
        self.updates[-1] += time.perf_counter()

    def train(self) -> float:
        """Seconds of ``STEPS`` steps, the device waited for at the end."""
        begun = time.perf_counter()
        with _autocast(self._device):
            for _ in range(STEPS):
                self._optimizer.zero_grad()
                nn.functional.cross_entropy(self._model(self._images).float(), self._labels).backward()
                self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - begun


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def compared(make: Callable[[], Workload], side: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """For each way the time of a step over that without an average, and what its engine is."""
    ways = WAYS if device.type == "cuda" else {name: WAYS[name] for name in ("no average", "inline")}
    runs = {name: Run(make(), side, device, options) for name, options in ways.items()}
    for run in runs.values():
        run.train()  # compiles kernels, fills the allocator
        run.updates.clear()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for done in range(rounds):
        for name in random.Random(done).sample(list(runs), len(runs)):
            seconds[name].append(runs[name].train())
    plain = seconds["no average"]
    return {
        name: {
            "ratio": median(mine / base for mine, base in zip(each, plain, strict=True)),
            "step": median(each) / STEPS,
            "host": median(runs[name].updates) if runs[name].updates else None,
            "engine": run.ema.metrics()["engine"] if (run := runs[name]).ema is not None else None,
        }
        for name, each in seconds.items()
    }


def main() -> None:
    """Measure, print the table, write it with date and machine."""
    options = arguments(__doc__, rounds=21)
    device = torch.device(options.device)
    models: Mapping[str, tuple[Callable[[], Workload], int]] = ON_GPU if device.type == "cuda" else ON_CPU
    found = {head: compared(make, side, device, options.rounds) for head, (make, side) in models.items()}
    heads = [f"{head}: {what}" for head in found for what in ("× a step", "step and update on the host, µs")]
    rows: dict[str, list[str]] = {}
    for name in next(iter(found.values())):
        cells = [(ways[name]["ratio"], ways[name]["host"]) for ways in found.values()]
        rows[name] = [cell for ratio, host in cells for cell in (number(ratio, 1, 3), number(host, 1e6, 0))]
    write(
        "beside", "Ten training steps with an average over ten without;", table(heads, rows), found, options
    )


if __name__ == "__main__":
    main()
