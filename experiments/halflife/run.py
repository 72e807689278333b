"""Which half-life is best, after how many steps, under which learning rate and batch size?

python -m experiments.halflife.run --quick
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import polyak
from experiments import fashion, harness
from experiments.fashion import Images
from experiments.harness import Experiment, Row
from polyak.demo.in_torch import lenet
from polyak.schedules import Quadratic

BATCH, RATE = 64, 1e-3
BATCHES = (16, 256)
EPOCHS = (1, 2, 3, 5, 10)
COSINES = (1, 3, 5)


@dataclass(frozen=True)
class Size:
    """What is trained on, and how long.

    Args:
        train: training images.
        test: test images, and training images for the loss on those.
        half_lives: in steps of 64 images, each twice the one before.
        every: steps between snapshots; the run at a constant rate is a whole number of them.
    """

    train: int
    test: int
    half_lives: tuple[int, ...]
    every: int = 20

    def steps(self, epochs: int, batch: int = BATCH) -> int:
        """Steps of so many epochs; the last batch of each is what is left."""
        return epochs * math.ceil(self.train / batch)


class Run:
    """A training run with one average for each half-life and one of the default schedule.

    Half-lives are in steps of 64 images, whatever the batch: with k times the images a step, β is β^k.
    """

    def __init__(self, seed: int, size: Size, batch: int) -> None:
        self.train, self.test = fashion.images(size.train, size.test)
        torch.manual_seed(seed)
        self.model = lenet()
        self.batch = batch
        tracks = {str(h): polyak.HalfLife(steps=h * BATCH / batch) for h in size.half_lives}
        self.ema = polyak.EMA(self.model, {"default": polyak.Warmup(0.9999), **tracks})
        self.order = torch.Generator().manual_seed(seed)

    def steps(self, steps: int, rate: fashion.Rate) -> Iterator[int]:
        for step in fashion.training(self.model, self.train, steps, self.batch, rate, self.order):
            self.ema.update()
            yield step

    def losses(self) -> dict[str, float]:
        """Test losses now, of raw weights, the default schedule, and every half-life."""
        warnings.filterwarnings("ignore", ".*still the weights it began with")  # the long ones: that is the U
        found = {"raw": fashion.evaluate(self.model, self.test)[0]}
        for name in self.ema.tracks:
            with self.ema.average_parameters(name):
                found[name] = fashion.evaluate(self.model, self.test)[0]
        return found

    def by_heart(self) -> float:
        """The raw weights' loss on as many images they are trained on as there are test images."""
        n = len(self.test.labels)
        return fashion.evaluate(self.model, Images(self.train.pixels[:n], self.train.labels[:n]))[0]


def constant(seed: int, size: Size) -> tuple[dict[int, dict[str, float]], list[float | None]]:
    """One run at a constant rate: losses by epoch, and of averages made from its snapshots in the end."""
    run = Run(seed, size, BATCH)
    kept = polyak.EMA(
        run.model, {"narrow": polyak.Power(sigma_rel=0.02), "wide": polyak.Power(sigma_rel=0.10)}
    )
    looks = {size.steps(epochs): epochs for epochs in EPOCHS}
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with polyak.Archive(folder, kept, every=size.every) as archive:
            for step in run.steps(size.steps(EPOCHS[-1]), fashion.constant(RATE)):
                kept.update()
                if step in looks:
                    found[looks[step]] = run.losses() | {"train": run.by_heart()}
        made = [made_loss(archive, h, run.model, run.test) for h in size.half_lives]
    return found, made


def made_loss(archive: polyak.Archive, half_life: float, model: nn.Module, test: Images) -> float | None:
    """The loss of the average that the snapshots give; None where they cannot give it."""
    try:
        average = polyak.synthesize(archive, polyak.HalfLife(steps=half_life))
    except polyak.CheckpointError:  # shorter than these snapshots can hold
        return None
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in average.tensors.items()})
    loss = fashion.evaluate(model, test)[0]
    model.load_state_dict(raw)
    return loss


def other(seed: int, size: Size, batch: int, steps: int, rate: fashion.Rate) -> dict[str, float]:
    """The losses at the end of a run with another batch size or schedule."""
    run = Run(seed, size, batch)
    for _ in run.steps(steps, rate):
        pass
    return run.losses()


def best(losses: Mapping[str, float], half_lives: tuple[int, ...]) -> float:
    """The half-life at the bottom of a parabola through the lowest loss and its neighbours, over log h."""
    values = [losses[str(h)] for h in half_lives]
    low = values.index(min(values))
    if low in (0, len(values) - 1):
        return float(half_lives[low])
    x = np.log([half_lives[low + i] for i in (-1, 0, 1)])
    curve = np.polyfit(x - x[1], values[low - 1 : low + 2], 2)
    return float(np.exp(x[1] - curve[1] / (2 * curve[0])))


def exponent(found: Mapping[int, float]) -> float:
    """p of ``h ∝ Tᵖ``: the slope of a line through log h over log T."""
    return float(np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)[0])


def suggestion(steps: int) -> float:
    """What theory says for a spectrum ∝ i^-1.5, which no network has exactly."""
    problem = Quadratic(curvature=np.arange(1, 101) ** -1.5, noise=0.3, start=1.0)
    return polyak.suggest_half_life(steps, 0.5, problem).steps


def default(steps: int) -> float:
    """The half-life of the default after so many steps."""
    return math.log(2) * steps ** (2 / 3)


def run(seed: int, size: Size) -> dict[str, Any]:
    """The constant rate, the cosines, and the other batch sizes, from the same initial weights."""
    grid = size.half_lives
    looks, made = constant(seed, size)
    curves = {f"constant {epochs}": losses for epochs, losses in looks.items()}
    for epochs in COSINES:
        curves[f"cosine {epochs}"] = other(seed, size, BATCH, size.steps(epochs), fashion.cosine(RATE))
    for batch in BATCHES:  # under Adam the rate goes with the root of the batch
        rate = fashion.constant(RATE * (batch / BATCH) ** 0.5)
        curves[f"batch {batch}"] = other(seed, size, batch, size.steps(1, batch), rate)
    numbers: dict[str, Any] = {"made curve": made}
    for name, losses in curves.items():
        bottom = min(losses[str(h)] for h in grid)
        numbers[f"{name} curve"] = [losses[str(h)] for h in grid]
        numbers |= {f"{name} {key}": losses[key] for key in ("raw", "default", "train") if key in losses}
        numbers |= {f"{name} lowest": bottom, f"{name} gain": losses["raw"] - bottom}
        numbers[f"{name} best"] = best(losses, grid)
    for epochs in EPOCHS:
        steps = size.steps(epochs)
        numbers |= {f"default {epochs}": default(steps), f"suggested {epochs}": suggestion(steps)}
    numbers["default exponent"] = exponent({epochs: numbers[f"default {epochs}"] for epochs in EPOCHS})
    numbers["constant exponent"] = exponent({epochs: numbers[f"constant {epochs} best"] for epochs in EPOCHS})
    # Averages made afterwards, at the shortest half-life that these snapshots can hold.
    i = next(i for i, loss in enumerate(made) if loss is not None)
    numbers |= {"made": made[i], "computed": looks[EPOCHS[-1]][str(grid[i])]}
    # Four times the batch: with β⁴ a half-life is the same in images, with β kept it is four times as long.
    small, large = looks[1], curves["batch 256"]
    i = min(range(len(grid) - 2), key=lambda i: small[str(grid[i])])
    numbers |= {"scaled": large[str(grid[i])], "kept": large[str(grid[i + 2])]}
    return numbers


def after(epochs: int) -> str:
    return f"after {epochs} epoch{'s' if epochs > 1 else ''}"


BEST_OF_ALL = "best of all half-lives, chosen on these images"
DEFAULT = "default, Warmup(0.9999)"
LAST = EPOCHS[-1]

ROWS = (
    *(
        Row(
            f"test loss {after(epochs)}, constant rate",
            "nats",
            "equal",
            (f"constant {epochs} lowest", BEST_OF_ALL),
            (f"constant {epochs} default", DEFAULT),
            headline=epochs == LAST,
        )
        for epochs in reversed(EPOCHS)
    ),
    Row(
        f"test loss {after(LAST)}, constant rate",
        "nats",
        "lower",
        (f"constant {LAST} raw", "raw weights"),
        (f"constant {LAST} lowest", "best half-life"),
    ),
    Row(
        f"loss of the raw weights {after(LAST)}",
        "nats",
        "lower",
        (f"constant {LAST} raw", "test images"),
        (f"constant {LAST} train", "training images"),
    ),
    *(
        Row(
            f"half-life {after(epochs)}, constant rate",
            "steps",
            "equal",
            (f"default {epochs}", "default, 0.69·t^⅔"),
            (f"constant {epochs} best", "best here"),
        )
        for epochs in EPOCHS
    ),
    Row(
        "growth of the half-life with the length of the run at a constant rate, ∝ T^p",
        "p",
        "equal",
        ("default exponent", "default, 0.69·t^⅔"),
        ("constant exponent", "best here"),
    ),
    Row(
        f"half-life {after(LAST)}, constant rate",
        "steps",
        "equal",
        (f"constant {LAST} best", "best here"),
        (f"suggested {LAST}", "suggested by theory for curvatures i^-1.5"),
    ),
    *(
        Row(
            f"gain of the best half-life {after(epochs)}",
            "nats",
            "higher",
            (f"cosine {epochs} gain", "cosine to zero"),
            (f"constant {epochs} gain", "constant rate"),
        )
        for epochs in COSINES
    ),
    *(
        Row(
            f"best half-life {after(epochs)}",
            "steps",
            "equal",
            (f"constant {epochs} best", "constant rate"),
            (f"cosine {epochs} best", "cosine to zero"),
        )
        for epochs in COSINES
    ),
    *(
        Row(
            f"test loss {after(epochs)}, cosine to zero",
            "nats",
            "equal",
            (f"cosine {epochs} lowest", BEST_OF_ALL),
            (f"cosine {epochs} default", DEFAULT),
        )
        for epochs in reversed(COSINES)
    ),
    *(
        Row(
            "best half-life after 1 epoch",
            "steps of 64 images",
            "equal",
            ("constant 1 best", "batch 64"),
            (f"batch {batch} best", f"batch {batch}"),
        )
        for batch in BATCHES
    ),
    Row(
        "test loss at batch 256 of the half-life that was best at 64",
        "nats",
        "lower",
        ("kept", "β kept"),
        ("scaled", "β^4"),
    ),
    Row(
        "test loss of the shortest average that the snapshots hold",
        "nats",
        "equal",
        ("computed", "computed while training"),
        ("made", "made afterwards"),
    ),
)
LOSS_OVER_HALF_LIFE = "test loss of each half-life in the settings"

QUICK = Size(6_400, 2_000, half_lives=(2, 4, 8, 16, 32, 64, 128))
FULL = Size(60_000, 5_000, half_lives=(4, 8, 16, 32, 64, 128, 256, 512, 1_024))

EXPERIMENTS = (
    Experiment(
        name="halflife",
        claim="The default half-life, 0.69·t^⅔ steps, has the loss of the best fixed one to 0.003, without a "
        "search.",
        published="no figure; articles name 0.999 or 0.9999 for runs of every length",
        gain=0.003,
        data=fashion.DATA,
        rows=ROWS,
        run=run,
        quick=QUICK,
        full=FULL,
        curves={
            f"{name} curve": LOSS_OVER_HALF_LIFE
            for name in (
                *(f"constant {epochs}" for epochs in EPOCHS),
                *(f"cosine {epochs}" for epochs in COSINES),
                *(f"batch {batch}" for batch in BATCHES),
                "made",
            )
        },
    ),
)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
