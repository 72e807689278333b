"""DINO on digits, with and without momentum, and without its centre: what an answer says of its image.

The mutual information of image and answer, the entropy of the mean answer less the mean entropy of an answer,
is 0 if all images have the same answer, be it one output or all of them alike: the two ways to collapse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import polyak
from experiments import fashion
from experiments.byol.heads import head, probe
from experiments.harness import Data, Experiment, Numbers, Row
from experiments.small_images import Split, answers, batches, fit, load, moments


@dataclass(frozen=True)
class Size:
    """Length, evaluations and answers to choose from; the probe knows 300 labels."""

    steps: int
    evaluations: int
    outputs: int = 64
    batch: int = 128
    lr: float = 2e-3
    momentum: float = 0.99
    known: int = 300


ARMS = {"momentum": (True, 0.9), "none": (False, 0.9), "no centre": (True, 1.0)}
"""By name: whether the teacher has momentum, and that of the centre, which at 1 stays zero."""


class Prototypes(nn.Module):
    """The cosine of a direction with that of each output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x) @ normalize(self.weight).T


def views(seed: int) -> Callable[[Tensor], Tensor]:
    """Some pixels are hidden, all are noisy."""
    draw = torch.Generator().manual_seed(seed)

    def view(images: Tensor) -> Tensor:
        kept = torch.rand(images.shape, generator=draw) > 0.3
        return images * kept + 0.1 * torch.randn(images.shape, generator=draw)

    return view


def entropies(p: Tensor) -> tuple[float, float]:
    """That of the mean answer and the mean of all answers', in nats, of probabilities [images, outputs]."""
    entropy = torch.special.entr
    return float(entropy(p.mean(0)).sum()), float(entropy(p).sum(-1).mean())


def learn(seed: int, size: Size, arm: str, train: Split, test: Split) -> dict[str, Any]:
    """The entropies of the teacher's answers over a run, and at its end a probe of the student's features."""
    slow, centre = ARMS[arm]
    torch.manual_seed(seed)
    features = head(train.images[0].numel(), 128, 64, norm=False)
    student = nn.Sequential(nn.Flatten(), features, Prototypes(64, size.outputs))
    teacher = polyak.Teacher(student, size.momentum if slow else 0.0)
    loss, view = polyak.losses.DINO(size.outputs, momentum=centre), views(seed)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        one, other = view(images), view(images)
        return loss(student(torch.cat([one, other])), teacher(torch.cat([other, one])))

    curve: list[tuple[float, float]] = []
    rows = batches(len(train.labels), size.batch, size.steps, seed)
    when = moments(size.steps, size.evaluations)
    for step in fit(student, train, rows, fashion.constant(size.lr), loss_of):
        teacher.update()
        if step in when:
            logits = (teacher(test.images) - loss.center) / loss.teacher_temperature
            curve.append(entropies(logits.softmax(-1)))
    images, labels = (torch.cat([a[: size.known], b]) for a, b in zip(train, test, strict=True))
    mean, single = (list(values) for values in zip(*curve, strict=True))
    return {
        f"{arm} mean": mean,
        f"{arm} single": single,
        f"{arm} information": [a - b for a, b in curve],
        f"{arm} last information": mean[-1] - single[-1],
        f"{arm} last mean": mean[-1],
        f"{arm} last single": single[-1],
        f"{arm} probe": probe(answers(student[:2], images), labels, size.known),
    }


def run(seed: int, size: Size) -> Numbers:
    train, test = load("digits", 2_000, 2_000, side=8)  # all of them, in their own size
    found: dict[str, Any] = {}
    for arm in ARMS:
        found |= learn(seed, size, arm, train, test)
    return found


def sides(number: str, without: str = "none") -> tuple[tuple[str, str], tuple[str, str]]:
    """A part of the method left out, and all of it."""
    what = {"none": "momentum 0", "no centre": "no centre", "momentum": "momentum 0.99"}
    a, b = ((f"{arm} {number}", what[arm]) for arm in (without, "momentum"))
    return a, b


INFORMATION = partial(Row, "what an answer says of its image", "nats", "higher")

DINO = Experiment(
    name="dino",
    claim="DINO's answers say more of an image if its teacher changes slowly.",
    published="Caron et al. 2021, table 7: ImageNet, k-NN 0.1 % without momentum, 72.8 % with it",
    gain=None,
    data=Data("scikit-learn digits", "BSD-3-Clause"),
    rows=(
        INFORMATION(*sides("last information"), headline=True),
        INFORMATION(*sides("last information", "no centre")),
        Row("entropy of the mean answer", "nats", "higher", *sides("last mean")),
        Row("mean entropy of an answer", "nats", "lower", *sides("last single")),
        Row("accuracy of a linear probe", "points", "higher", *sides("probe")),
        Row("accuracy of a linear probe", "points", "higher", *sides("probe", "no centre")),
    ),
    run=run,
    quick=Size(steps=400, evaluations=8),
    full=Size(steps=600, evaluations=12),
    seeds=8,
    curves={f"{arm} information": f"nats, of at most {math.log(64):.2f}" for arm in ARMS},
)
