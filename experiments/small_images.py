"""What the experiments on small images share: the images, a network, the loop, and how a model is judged.

Batches and initial weights follow from the seed alone, so runs of one seed differ in what is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from experiments.fashion import CHUNK, Rate
from experiments.harness import Row
from experiments.intervals import jump, second_half, wobble
from polyak.demo.data import CLASSES, SIDE
from polyak.demo.data import Split as Bytes
from polyak.demo.data import load as load_bytes


class Split(NamedTuple):
    """``images`` float32 [n, channels, side, side] from 0 to 1, ``labels`` int64 [n]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Training:
    """Images, and how long a model is trained on them with which batches and rate.

    Args:
        train: images to train on.
        test: images to test on.
        steps: of the optimizer.
        evaluations: over the run, evenly spread.
        batch: images in a step.
        lr: the highest learning rate.
        side: of an image, in pixels.
        data: a name that ``polyak demo`` knows.
    """

    train: int
    test: int
    steps: int
    evaluations: int
    batch: int = 64
    lr: float = 1e-3
    side: int = 16
    data: str = "fashion-mnist"


class Score(NamedTuple):
    """Accuracy in percent, and mean cross-entropy."""

    accuracy: float
    loss: float


def load(data: str, train: int, test: int, side: int) -> tuple[Split, Split]:
    """The first images of a data set.

    Args:
        data: a name that ``polyak demo`` knows.
        train: how many to train on.
        test: how many to test on.
        side: in pixels, 32, 16 or 8: half the side takes a quarter of the time.
    """

    def first(found: Bytes, n: int) -> Split:
        images = torch.from_numpy(found.pixels[:n]).to(torch.float32).div_(255)
        return Split(avg_pool2d(images, SIDE // side), torch.from_numpy(found.labels[:n]))

    found = load_bytes(data, None)
    return first(found.train, train), first(found.test, test)


def encoder(channels: int, widths: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """Convolutions of stride 2 with BatchNorm: float [b, channels, side, side] => [b, widths[-1]]."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def classifier(seed: int, train: Split) -> nn.Sequential:
    """An encoder and a linear layer, with the initial weights of a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(encoder(train.images.shape[1]), nn.Linear(64, CLASSES))


def batches(images: int, size: int, steps: int, seed: int) -> list[Tensor]:
    """Rows of each step's batch: every epoch in a new order, without a short last batch."""
    order = torch.Generator().manual_seed(seed)
    epochs = math.ceil(steps / (images // size))
    orders = (torch.randperm(images, generator=order) for _ in range(epochs))
    return [rows for epoch in orders for rows in epoch.split(size) if len(rows) == size][:steps]


def fit(
    model: nn.Module,
    train: Split,
    rows: Sequence[Tensor],
    rate: Rate,
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[int]:
    """Train with AdamW, and yield after each step how many there were.

    Args:
        model: what is trained, in training mode at each step.
        train: what it is trained on.
        rows: of each batch.
        rate: the learning rate, given the step and how many there are.
        loss_of: from a batch's images and labels to the loss.
    """
    optimizer = torch.optim.AdamW(model.parameters())
    for step, batch in enumerate(rows):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, len(rows))
        model.train()
        optimizer.zero_grad()
        loss_of(train.images[batch], train.labels[batch]).backward()
        optimizer.step()
        yield step + 1


def moments(steps: int, evaluations: int) -> set[int]:
    """So many steps of a run, evenly spread, the last one included."""
    return {round(steps * k / evaluations) for k in range(1, evaluations + 1)}


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    """What a model answers in evaluation mode."""
    model.eval()
    return torch.cat([model(some) for some in images.split(CHUNK)])


def score(logits: Tensor, labels: Tensor) -> Score:
    """Of answers."""
    right = (logits.argmax(1) == labels).double().mean()
    return Score(100 * float(right), float(cross_entropy(logits, labels)))


def evaluate(model: nn.Module, test: Split) -> Score:
    """Of a model, on images that it was not trained on."""
    return score(answers(model, test.images), test.labels)


class Curves(dict[str, list[float]]):
    """Numbers over the evaluations of a run, by name."""

    def add(self, name: str, found: Score) -> None:
        """Another evaluation: ``NAME accuracy`` and ``NAME loss``."""
        for metric, value in found._asdict().items():
            self.setdefault(f"{name} {metric}", []).append(value)

    def numbers(self) -> dict[str, Any]:
        """Every curve, and what the rows compare of it: its end, its second half, jump and wobble."""
        found: dict[str, Any] = dict(self)
        for name, values in self.items():
            found[f"{name}, last"], found[f"{name}, late"] = values[-1], fmean(second_half(values))
            found[f"{name}, jump"], found[f"{name}, wobble"] = jump(values), wobble(values)
        return found


def rows(
    metric: str,
    unit: str,
    without: tuple[str, str],
    with_average: tuple[str, str],
    parts: Mapping[str, str],
    headline: bool = False,
) -> tuple[Row, ...]:
    """Rows of two curves beside each other.

    Args:
        metric: "accuracy" or "loss", the second word of a curve's name.
        unit: of the metric.
        without: the first word of the curve's name, and what it is measured on.
        with_average: the same for the other side.
        parts: which of the numbers of a curve ("last", "late", "jump", "wobble"), and what a row is called.
        headline: whether the first of them is the headline.
    """

    def row(part: str, name: str, first: bool) -> Row:
        sides = [(f"{curve} {metric}, {part}", what) for curve, what in (without, with_average)]
        better = "lower" if metric == "loss" or part in ("jump", "wobble") else "higher"
        return Row(name, unit, better, sides[0], sides[1], headline and first)

    return tuple(row(part, name, i == 0) for i, (part, name) in enumerate(parts.items()))
