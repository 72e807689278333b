"""Does an average lose accuracy when it is stored in fewer bits than float32?

python -m experiments.precision.run --quick
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import polyak
from experiments import fashion, harness
from experiments.harness import Experiment, Row
from polyak.demo.in_torch import lenet

DTYPES: dict[str, Any] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "split": "split",
}
DECAY = 0.9998  # as long as the tutorial's: the longer, the smaller each increment beside the rounding


@dataclass(frozen=True)
class Size:
    """Images to train and to test on, passes over the former, and images in a batch."""

    train: int
    test: int
    epochs: int
    batch: int = 64


def held() -> int:
    """Bytes of all tensors in this process, each storage once."""
    gc.collect()
    alive = [one.untyped_storage() for one in gc.get_objects() if issubclass(type(one), Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


def run(seed: int, size: Size) -> dict[str, Any]:
    """One training run; the same decay averages the same θ in every storage."""
    train, test = fashion.images(size.train, size.test)
    torch.manual_seed(seed)
    model = lenet()
    numbers: dict[str, Any] = {}
    kept: dict[str, polyak.EMA] = {}
    for name, dtype in DTYPES.items():
        before = held()
        kept[name] = polyak.EMA(model, polyak.Warmup(DECAY), dtype=dtype, seed=seed)
        numbers[f"{name} memory"] = (held() - before) / 1000
    steps = size.epochs * math.ceil(size.train / size.batch)
    order = torch.Generator().manual_seed(seed)
    for _ in fashion.training(model, train, steps, size.batch, fashion.constant(1e-3), order):
        for ema in kept.values():
            ema.update()
    numbers["raw loss"], numbers["raw accuracy"] = fashion.evaluate(model, test)
    for name, ema in kept.items():
        with ema.average_parameters():
            numbers[f"{name} loss"], numbers[f"{name} accuracy"] = fashion.evaluate(model, test)
    return numbers


def row(metric: str, unit: str, better: harness.Better, dtype: str) -> Row:
    """A storage beside float32; the first is the headline."""
    sides = [(f"{name} {metric.split()[-1]}", name) for name in ("float32", dtype)]
    headline = (metric, dtype) == ("accuracy", "bfloat16")
    return Row(metric, unit, better, sides[0], sides[1], headline)


NARROW = ("bfloat16", "float16", "split")

EXPERIMENTS = (
    Experiment(
        name="precision",
        claim="An average stored in bfloat16, rounded at random, has the accuracy of one in float32, to 0.05 "
        "points.",
        published="no figure; 16-bit averages are often said to stop moving",
        gain=0.05,
        data=fashion.DATA,
        rows=(
            *(row("accuracy", "points", "equal", dtype) for dtype in NARROW),
            *(row("test loss", "nats", "equal", dtype) for dtype in NARROW),
            *(row("average's memory", "kB", "lower", dtype) for dtype in NARROW),
            Row(
                "accuracy, to see how much there was to lose",
                "points",
                "higher",
                ("raw accuracy", "raw weights"),
                ("float32 accuracy", "float32"),
            ),
        ),
        run=run,
        quick=Size(train=20_000, test=5_000, epochs=1),
        full=Size(train=60_000, test=10_000, epochs=2),
    ),
)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
