"""The training loop: AdamW, cross-entropy, and an average updated after every step.

It yields records and prints nothing. Every record contains both curves and the time spent so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from polyak.demo.data import Images
from polyak.demo.learner import BATCH, Learner
from polyak.demo.options import Rate

LR_FIRST, LR_LAST = 1e-3, 1e-4


@dataclass(frozen=True)
class Seconds:
    """The time spent, in seconds since the start.

    `train` is forward, backward and optimizer step; `ema` is `ema.update()`. The evaluations, which only a
    demonstration needs, are not counted.
    """

    train: float = 0.0
    ema: float = 0.0

    @property
    def ema_share(self) -> float:
        """The share of a training step spent on the average: ema / (train + ema)."""
        return self.ema / (self.train + self.ema)


@dataclass(frozen=True)
class LossRecord:
    """Mean cross-entropy over the batches since the last record, each taken before the step on that batch."""

    epoch: int
    step: int
    lr: float
    loss: float
    ema_loss: float
    seconds: Seconds


@dataclass(frozen=True)
class EpochRecord:
    """The test images after an epoch: mean cross-entropy and accuracy in 0 … 1."""

    epoch: int
    step: int
    test_loss: float
    ema_test_loss: float
    accuracy: float
    ema_accuracy: float
    seconds: Seconds


Record = LossRecord | EpochRecord


class Training:
    """The loop that moves a model and its average.

    Args:
        learner: both, and how to step them.
        images: the data, moved to the device once, as bytes.
        epochs: passes over the training images.
        lr: the learning rate's schedule.
    """

    def __init__(self, learner: Learner, images: Images, epochs: int, lr: Rate = "constant") -> None:
        self.learner, self.ema, self.epochs, self.lr = learner, learner.ema, epochs, lr
        self.train, self.test = learner.to_device(images.train), learner.to_device(images.test)
        self.steps_per_epoch = math.ceil(len(images.train.labels) / BATCH)  # the short last one included
        self.seconds = Seconds()

    def run(self, after_step: Callable[[], bool]) -> Iterator[Record]:
        """Train; yield a loss record at each third of an epoch and an epoch record after it.

        Args:
            after_step: called once per step; true ends the run there, after a record of the steps since
                the last one.
        """
        thirds = {math.ceil(self.steps_per_epoch * k / 3) for k in (1, 2, 3)}
        for epoch in range(1, self.epochs + 1):
            lr = LR_FIRST if self.lr == "constant" else cosine(epoch - 1, self.epochs)
            self.learner.set_lr(lr)
            losses: list[tuple[Any, Any]] = []
            for step, batch in enumerate(self.learner.shuffled(*self.train), start=1):
                losses.append(self._step(*batch))
                stop = after_step()
                if stop or step in thirds:
                    yield self._loss_record(epoch, lr, losses)
                    losses.clear()
                if stop:
                    return
            yield self._epoch_record(epoch)

    def _step(self, inputs: Any, labels: Any) -> tuple[Any, Any]:
        """One training step => raw loss, loss of the average, both before either has seen the batch."""
        ema_loss = self.learner.watch(inputs, labels)
        begun = self._now()
        loss = self.learner.step(inputs, labels)
        trained = self._now()
        self.ema.update()
        spent = self.seconds
        self.seconds = Seconds(spent.train + trained - begun, spent.ema + self._now() - trained)
        return loss, ema_loss

    def _now(self) -> float:
        self.learner.wait()  # a GPU works asynchronously
        return time.perf_counter()

    def _loss_record(self, epoch: int, lr: float, losses: Sequence[tuple[Any, Any]]) -> LossRecord:
        raw, ema = (fmean(map(float, side)) for side in zip(*losses, strict=True))
        return LossRecord(epoch, self.ema.step, lr, raw, ema, self.seconds)

    def _epoch_record(self, epoch: int) -> EpochRecord:
        raw = self.learner.evaluate(*self.test)
        with self.ema.average_parameters():
            ema = self.learner.evaluate(*self.test)
        return EpochRecord(epoch, self.ema.step, raw.loss, ema.loss, raw.accuracy, ema.accuracy, self.seconds)


def cosine(epoch: int, epochs: int) -> float:
    """Learning rate of an epoch counted from 0: ½(first + last) + ½(first - last)·cos(π·epoch/epochs).

    The annealing of Loshchilov and Hutter 2017 (arXiv 1608.03983), one value per epoch; `last` itself would
    be the rate of the epoch after the run.
    """
    return LR_LAST + (LR_FIRST - LR_LAST) * (1 + math.cos(math.pi * epoch / epochs)) / 2
