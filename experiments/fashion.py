"""The demo's network on Fashion-MNIST: what the experiments tutorial, halflife and precision train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.harness import Data
from polyak.demo.data import Split, load
from polyak.demo.in_torch import to_input

DATA = Data("Fashion-MNIST", "MIT")
CHUNK = 250  # as many test images fit in a core's cache: twice as fast as 2,500

Rate = Callable[[int, int], float]
"""The learning rate of a step, counted from 0, in a run of so many."""


class Images(NamedTuple):
    """Bytes, [n, 1, 32, 32], and classes, [n]."""

    pixels: Tensor
    labels: Tensor


def images(train: int, test: int) -> tuple[Images, Images]:
    """The first so many training and test images; they are in no order of classes."""
    found = load("fashion-mnist", None)
    return cut(found.train, train), cut(found.test, test)


def cut(split: Split, count: int) -> Images:
    return Images(torch.tensor(split.pixels[:count]), torch.tensor(split.labels[:count]))


def constant(rate: float) -> Rate:
    return lambda step, steps: rate


def cosine(rate: float) -> Rate:
    """From ``rate`` to zero."""
    return lambda step, steps: rate * (1 + math.cos(math.pi * step / steps)) / 2


def training(
    model: nn.Module, train: Images, steps: int, batch: int, rate: Rate, order: torch.Generator
) -> Iterator[int]:
    """AdamW and cross-entropy, each epoch in a new order; yields the number of steps after each."""
    optimizer = torch.optim.AdamW(model.parameters())
    batches = chain.from_iterable(
        torch.randperm(len(train.labels), generator=order).split(batch) for _ in count()
    )
    for step, chosen in enumerate(islice(batches, steps)):
        optimizer.param_groups[0]["lr"] = rate(step, steps)
        loss = cross_entropy(model(to_input(train.pixels[chosen])), train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step + 1


def evaluate(model: nn.Module, test: Images) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy in percent."""
    loss, right = 0.0, 0
    with torch.no_grad():
        for pixels, labels in zip(test.pixels.split(CHUNK), test.labels.split(CHUNK), strict=True):
            scores = model(to_input(pixels))
            loss += cross_entropy(scores, labels, reduction="sum").item()
            right += int((scores.argmax(1) == labels).sum())
    return loss / len(test.labels), 100 * right / len(test.labels)
