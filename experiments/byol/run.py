"""Does learning without labels need a teacher that changes slowly?

    python -m experiments.byol.run [--quick] [--out experiments/byol/results]

BYOL on garments with several momenta, 0 being a teacher that is the student itself, and DINO on digits, in
``dino.py``. All runs of a seed have the same batches, the same views and, where the network is the same, the
same initial weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

import polyak
from experiments import fashion, harness
from experiments.byol.dino import DINO
from experiments.byol.heads import head, probe
from experiments.harness import Experiment, Numbers, Row
from experiments.small_images import (
    Split,
    Training,
    answers,
    batches,
    encoder,
    fit,
    load,
    moments,
)


@dataclass(frozen=True, kw_only=True)
class Size(Training):
    """A training, and how many labels the probe knows."""

    batch: int = 128
    lr: float = 2e-3
    known: int = 2_000


ARMS: dict[str, tuple[Callable[[int], Any], bool]] = {
    "0": (lambda steps: 0.0, True),
    "0.9": (lambda steps: 0.9, True),
    "0.99": (lambda steps: 0.99, True),
    "0.996 to 1": (lambda steps: polyak.Cosine(0.996, 1.0, total=steps), True),
    "0, no BatchNorm": (lambda steps: 0.0, False),
    "0.99, no BatchNorm": (lambda steps: 0.99, False),
}
"""By momentum: the teacher's decay in a run of so many steps, and whether the heads have BatchNorm."""


def views(seed: int) -> Callable[[Tensor], Tensor]:
    """Images moved by up to an eighth, mirrored or not, brighter or darker, with a square of them hidden."""
    draw = torch.Generator().manual_seed(seed)

    def view(images: Tensor) -> Tensor:
        n, side = len(images), images.shape[-1]
        move, square, place = side // 8, 3 * side // 8, torch.arange(side)
        dx, dy = torch.randint(2 * move + 1, (2, n, 1), generator=draw)
        hx, hy = torch.randint(side - square + 1, (2, n, 1), generator=draw)
        columns = torch.where(torch.rand(n, 1, generator=draw) < 0.5, place.flip(0), place)
        which, down, across = (
            torch.arange(n)[:, None, None],
            (dy + place)[:, :, None],
            (dx + columns)[:, None],
        )
        moved = pad(images, (move,) * 4)[which, :, down, across].permute(0, 3, 1, 2)
        bright = 0.6 + 0.8 * torch.rand(n, 1, 1, 1, generator=draw)
        in_rows, in_columns = ((place >= h) & (place < h + square) for h in (hy, hx))
        return moved * bright * ~(in_rows[:, None, :, None] & in_columns[:, None, None])

    return view


class Online(nn.Module):
    """Encoder and projector, which have a teacher, and the predictor, which has none."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.projected = nn.Sequential(encoder(channels), head(64, 128, 32, norm))
        self.predictor = head(32, 128, 32, norm)


def learn(seed: int, size: Size, arm: str, train: Split, test: Split) -> dict[str, Any]:
    """The probe's accuracy over a run, and at its end the spread of the student's answers."""
    decay, norm = ARMS[arm]
    torch.manual_seed(seed)
    online = Online(train.images.shape[1], norm)
    teacher = polyak.Teacher(online.projected, decay(size.steps), batchnorm="batch")
    view = views(seed)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        one, other = view(images), view(images)
        p, q = (online.predictor(online.projected(x)) for x in (one, other))
        return polyak.losses.byol(p, teacher(other)) + polyak.losses.byol(q, teacher(one))

    def probed(features: nn.Module) -> float:
        return probe(answers(features, test.images), test.labels, size.known)

    curve = [probed(online.projected[0])]
    rows = batches(len(train.labels), size.batch, size.steps, seed)
    when = moments(size.steps, size.evaluations)
    for step in fit(online, train, rows, fashion.constant(size.lr), loss_of):
        teacher.update()
        if step in when:
            curve.append(probed(online.projected[0]))
    directions = normalize(answers(online.projected, test.images))
    return {
        f"{arm} probe": curve,
        f"{arm} untrained": curve[0],
        f"{arm} last": curve[-1],
        f"{arm} teacher": probed(teacher.module[0]),
        f"{arm} spread": float(directions.std(0, correction=0).norm()),
    }


def run(seed: int, size: Size) -> Numbers:
    train, test = load(size.data, size.train, size.test, size.side)
    found: dict[str, Any] = {}
    for arm in ARMS:
        found |= learn(seed, size, arm, train, test)
    return found


def momenta(number: str, without: str, with_average: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Both sides of a row."""
    a, b = ((f"{arm} {number}", f"momentum {arm}") for arm in (without, with_average))
    return a, b


PROBE = partial(Row, "accuracy of a linear probe", "points", "higher")
SPREAD = partial(Row, "spread of the answers, 0 if all are the same", "of 1", "higher")

BYOL = Experiment(
    name="byol",
    claim="BYOL learns better features if its teacher changes slowly.",
    published="Grill et al. 2020, table 5a: ImageNet, momentum 0 → 0.99, accuracy 0.3 → 72.5 %",
    gain=72.2,
    data=fashion.DATA,
    rows=(
        PROBE(*momenta("last", "0", "0.99"), headline=True),
        PROBE(*momenta("last", "0", "0.9")),
        PROBE(*momenta("last", "0", "0.996 to 1")),
        PROBE(*momenta("last", "0, no BatchNorm", "0.99, no BatchNorm")),
        PROBE(("0 untrained", "untrained"), ("0 last", "momentum 0")),
        PROBE(("0.99 untrained", "untrained"), ("0.99 last", "momentum 0.99")),
        PROBE(("0.99 last", "momentum 0.99"), ("0.99 teacher", "its teacher")),
        SPREAD(*momenta("spread", "0", "0.99")),
        SPREAD(*momenta("spread", "0, no BatchNorm", "0.99, no BatchNorm")),
    ),
    run=run,
    quick=Size(train=20_000, test=4_000, steps=150, evaluations=2),
    full=Size(train=20_000, test=4_000, steps=600, evaluations=6),
    curves={f"{arm} probe": "percent, before the first step and at evenly spread moments" for arm in ARMS},
)

EXPERIMENTS = (DINO, BYOL)

if __name__ == "__main__":
    harness.main(*EXPERIMENTS)
