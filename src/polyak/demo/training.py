"""The training loop: AdamW, a cosine per epoch, cross-entropy, and an average updated after every step.

It yields what happened and prints nothing. Every record carries both curves and the time spent so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic

from polyak.demo.data import Images
from polyak.demo.learner import BATCH, Learner, T

LR_FIRST, LR_LAST = 1e-3, 1e-4


@dataclass(frozen=True)
class Seconds:
    """Where the time went, in seconds since the start.

    `train` is forward, backward and optimizer step; `ema` is `ema.update()`; `watch` is the average's loss
    on the training batches, which only a demonstration wants; `test` and `test_ema` are the passes over the
    test images.
    """

    train: float = 0.0
    ema: float = 0.0
    watch: float = 0.0
    test: float = 0.0
    test_ema: float = 0.0

    @property
    def ema_share(self) -> float:
        """What part of a training step goes into the average: ema / (train + ema)."""
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


class Training(Generic[T]):
    """The loop that moves a model and its average.

    Args:
        learner: both, and how to step them.
        images: the data, moved to the device once, as bytes.
        epochs: passes over the training images.
    """

    def __init__(self, learner: Learner[T], images: Images, epochs: int) -> None:
        self.learner, self.ema, self.epochs = learner, learner.ema, epochs
        self.train, self.test = learner.hold(images.train), learner.hold(images.test)
        self.steps_per_epoch = math.ceil(len(images.train.labels) / BATCH)  # the short last one included
        self.clock = Clock(learner.wait)

    def run(self, after_step: Callable[[], bool]) -> Iterator[Record]:
        """Train; yield a loss record at each third of an epoch and an epoch record after it.

        Args:
            after_step: called once per step; true ends the run there, after a record of the steps since
                the last one.
        """
        thirds = {math.ceil(self.steps_per_epoch * k / 3) for k in (1, 2, 3)}
        for epoch in range(1, self.epochs + 1):
            lr = cosine(epoch - 1, self.epochs)
            self.learner.set_lr(lr)
            losses: list[tuple[T, T]] = []
            for step, batch in enumerate(self.learner.shuffled(*self.train), start=1):
                losses.append(self._step(*batch))
                stop = after_step()
                if stop or step in thirds:
                    yield self._loss_record(epoch, lr, losses)
                    losses.clear()
                if stop:
                    return
            yield self._epoch_record(epoch)

    def _step(self, inputs: T, labels: T) -> tuple[T, T]:
        """One training step => raw loss, loss of the average, both before either has seen the batch."""
        with self.clock.into("watch"):
            ema_loss = self.learner.watch(inputs, labels)
        with self.clock.into("train"):
            loss = self.learner.step(inputs, labels)
        with self.clock.into("ema"):
            self.ema.update()
        return loss, ema_loss

    def _loss_record(self, epoch: int, lr: float, losses: Sequence[tuple[T, T]]) -> LossRecord:
        raw, ema = map(self.learner.mean, zip(*losses, strict=True))
        return LossRecord(epoch, self.ema.step, lr, raw, ema, self.clock.seconds)

    def _epoch_record(self, epoch: int) -> EpochRecord:
        with self.clock.into("test"):
            raw = self.learner.evaluate(*self.test)
        with self.clock.into("test_ema"), self.ema.average_parameters():
            ema = self.learner.evaluate(*self.test)
        return EpochRecord(
            epoch, self.ema.step, raw.loss, ema.loss, raw.accuracy, ema.accuracy, self.clock.seconds
        )


class Clock:
    """Adds wall-clock time to the fields of `Seconds`.

    Args:
        wait: for a GPU, which works behind our back.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self.seconds = Seconds()
        self._wait = wait

    @contextmanager
    def into(self, account: str) -> Generator[None]:
        """Add the time spent inside to one account."""
        start = time.perf_counter()
        yield
        self._wait()
        spent = getattr(self.seconds, account) + time.perf_counter() - start
        self.seconds = replace(self.seconds, **{account: spent})


def cosine(epoch: int, epochs: int) -> float:
    """Learning rate of an epoch counted from 0: ½(first + last) + ½(first - last)·cos(π·epoch/epochs).

    The annealing of Loshchilov and Hutter 2017 (arXiv 1608.03983), one value per epoch; `last` itself would
    be the rate of the epoch after the run.
    """
    return LR_LAST + (LR_FIRST - LR_LAST) * (1 + math.cos(math.pi * epoch / epochs)) / 2
