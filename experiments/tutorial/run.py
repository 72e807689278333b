"""What is an average worth at a constant learning rate, and what where the rate falls by itself?

python -m experiments.tutorial.run --quick
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

import polyak
from experiments import fashion, harness
from experiments.harness import Experiment, Row
from experiments.intervals import jump, moment, second_half, wobble
from polyak.demo.in_torch import lenet
from polyak.demo.training import LR_FIRST, cosine

RATES = ("constant", "cosine")
SIDES = ("raw", "average")


@dataclass(frozen=True)
class Size:
    """Images to train and to test on, passes over the former, and images in a batch."""

    train: int
    test: int
    epochs: int
    batch: int = 64


def rates(rate: str, epochs: int) -> fashion.Rate:
    """Those of ``polyak demo --lr``: 1e-3, or one value an epoch from there towards a tenth."""
    if rate == "constant":
        return fashion.constant(LR_FIRST)
    return lambda step, steps: cosine(epochs * step // steps, epochs)


def curves(seed: int, size: Size, rate: str) -> dict[str, list[float]]:
    """Losses and accuracies of the raw weights and of the average after every epoch."""
    train, test = fashion.images(size.train, size.test)
    torch.manual_seed(seed)
    model = lenet()
    ema = polyak.EMA(model, polyak.Warmup(0.9998))
    found: dict[str, list[float]] = {f"{side} {what}": [] for side in SIDES for what in ("loss", "accuracy")}
    order = torch.Generator().manual_seed(seed)
    per_epoch = math.ceil(size.train / size.batch)

    def note(side: str) -> None:
        for what, value in zip(("loss", "accuracy"), fashion.evaluate(model, test), strict=True):
            found[f"{side} {what}"].append(value)

    steps = size.epochs * per_epoch
    for step in fashion.training(model, train, steps, size.batch, rates(rate, size.epochs), order):
        ema.update()
        if step % per_epoch == 0:
            note("raw")
            with ema.average_parameters():
                note("average")
    return found


def numbers(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """What the curves of each rate come to."""
    kept: dict[str, Any] = {}
    for rate, one in found.items():
        for name, curve in one.items():
            kept |= {f"{rate} {name} curve": curve, f"{rate} {name}": curve[-1]}
        for side in SIDES:
            accuracy = one[f"{side} accuracy"]
            kept[f"{rate} {side} jump"] = jump(accuracy)
            kept[f"{rate} {side} wobble"] = wobble(second_half(accuracy))
            kept[f"{rate} {side} moment"] = moment(accuracy, max(one["raw accuracy"]))
    return kept


def run(seed: int, size: Size) -> dict[str, Any]:
    """Both rates from the same initial weights and the same order of images."""
    return numbers({rate: curves(seed, size, rate) for rate in RATES})


def row(metric: str, unit: str, number: str, better: harness.Better, rate: str) -> Row:
    """The raw weights beside their average; the accuracy at the constant rate is the headline."""
    name = f"{metric}, {NAMES[rate]}"
    sides = (f"{rate} raw {number}", "raw weights"), (f"{rate} average {number}", "average")
    return Row(name, unit, better, *sides, headline=(rate, number) == ("constant", "accuracy"))


NAMES = {"constant": "constant rate", "cosine": "cosine to a tenth"}
ROWS = (
    row("accuracy at the end", "points", "accuracy", "higher", "constant"),
    row("test loss at the end", "nats", "loss", "lower", "constant"),
    row("when the raw weights' best accuracy is reached", "epochs", "moment", "lower", "constant"),
    row("jump of the accuracy between epochs", "points", "jump", "lower", "constant"),
    row("wobble of the accuracy", "points", "wobble", "lower", "constant"),
    row("accuracy at the end", "points", "accuracy", "higher", "cosine"),
    row("test loss at the end", "nats", "loss", "lower", "cosine"),
    row("wobble of the accuracy", "points", "wobble", "lower", "cosine"),
    Row(
        "accuracy at the end, an average instead of a schedule",
        "points",
        "higher",
        ("cosine raw accuracy", "raw weights, cosine to a tenth"),
        ("constant average accuracy", "average, constant rate"),
    ),
)

EXPERIMENTS = (
    Experiment(
        name="tutorial",
        claim="A small network trained at a constant learning rate ends more accurate when its weights are "
        "averaged.",
        published="a tutorial on CIFAR-10: accuracy +2 points",
        gain=2.0,
        data=fashion.DATA,
        rows=ROWS,
        run=run,
        quick=Size(train=15_000, test=5_000, epochs=4),
        full=Size(train=60_000, test=10_000, epochs=5),
        curves={
            f"{rate} {side} accuracy curve": "percent after each epoch" for rate in RATES for side in SIDES
        },
    ),
)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
