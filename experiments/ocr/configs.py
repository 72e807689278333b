"""How large an experiment is: its lines, its network, its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True)
class Lines:
    """characters: how many of GB2312's 3755 common ones.  shortest, longest: characters in a line.

    There must be many more strings than the test part takes, since the training part may have none of those.
    """

    characters: int
    shortest: int
    longest: int
    width: int
    train: int
    test: int
    height: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Net:
    """strides: of the patch embedding's convolutions, down and across; across they multiply to 4.

    stages: for each the width of a token and its mixers, L within a window, G over the whole line.
    Between two stages the height is halved.
    """

    strides: tuple[tuple[int, int], ...]
    stages: tuple[tuple[int, str], ...]
    head: int = 32  # the width of one attention head


@dataclass(frozen=True)
class Training:
    """evaluations: equally spaced over the second half of the steps; the first half has a quarter as many."""

    steps: int
    batch: int
    evaluations: int
    rate: float
    warmup: int
    schedule: Schedule = "cosine"


@dataclass(frozen=True)
class Config:
    name: str
    lines: Lines
    net: Net
    training: Training


QUICK = Config(
    "quick",
    Lines(characters=60, shortest=2, longest=3, width=72, train=8_000, test=500),
    Net(strides=((2, 2), (2, 2), (2, 1), (2, 1)), stages=((128, "LG"),)),
    Training(steps=1_200, batch=16, evaluations=10, rate=1e-3, warmup=100),
)
# What one CPU thread trains in a quarter of an hour: five seeds at both schedules are hours.
FULL = Config(
    "full",
    Lines(characters=200, shortest=2, longest=4, width=96, train=40_000, test=2_000),
    Net(strides=((2, 2), (2, 2), (2, 1), (2, 1)), stages=((64, "L"), (128, "LG"))),
    Training(steps=6_000, batch=16, evaluations=10, rate=1e-3, warmup=300),
)
