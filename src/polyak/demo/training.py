"""The training loop: AdamW, a cosine per epoch, cross-entropy, and an average updated after every step.

It yields what happened and prints nothing. Every record carries both curves and the time spent so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import polyak
from polyak.demo.data import Images, Split
from polyak.demo.model import lenet, to_input
from polyak.demo.options import Options
from polyak.errors import ConfigError

BATCH = 64
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


class Training:
    """A model, its average, and the loop that moves both.

    Args:
        options: what was asked.
        images: the data, moved to the device once, as bytes.
        device: where everything happens.
    """

    def __init__(self, options: Options, images: Images, device: torch.device) -> None:
        self.device = device
        torch.manual_seed(options.seed)
        self.model = lenet().to(device)
        self.ema = polyak.EMA(self.model, options.schedule)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR_FIRST)
        self.epochs = options.epochs
        self.order = torch.Generator().manual_seed(options.seed)
        self.train, self.test = (to_device(split, device) for split in (images.train, images.test))
        self.clock = Clock(device)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images, the short last one included."""
        return math.ceil(len(self.train[1]) / BATCH)

    def run(self, after_step: Callable[[], bool]) -> Iterator[Record]:
        """Train; yield a loss record at each third of an epoch and an epoch record after it.

        Args:
            after_step: called once per step; true ends the run there, after a record of the steps since
                the last one.
        """
        pixels, labels = self.train
        thirds = {math.ceil(self.steps_per_epoch * k / 3) for k in (1, 2, 3)}
        for epoch in range(1, self.epochs + 1):
            set_lr(self.optimizer, cosine(epoch - 1, self.epochs))
            order = torch.randperm(len(labels), generator=self.order).to(self.device)
            losses: list[Tensor] = []
            for step, batch in enumerate(torch.split(order, BATCH), start=1):
                losses.append(self._step(to_input(pixels[batch]), labels[batch]))
                stop = after_step()
                if stop or step in thirds:
                    yield self._loss_record(epoch, losses)
                    losses.clear()
                if stop:
                    return
            yield self._epoch_record(epoch)

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One training step => [raw loss, loss of the average], both before either has seen the batch."""
        with self.clock.into("watch"):
            ema_loss = cross_entropy(self.ema(inputs), labels)
        with self.clock.into("train"):
            self.model.train()
            loss = cross_entropy(self.model(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            self.optimizer.step()
        with self.clock.into("ema"):
            self.ema.update()
        return torch.stack([loss.detach(), ema_loss])

    def _loss_record(self, epoch: int, losses: list[Tensor]) -> LossRecord:
        mean = torch.stack(losses).mean(0)
        lr = self.optimizer.param_groups[0]["lr"]
        return LossRecord(epoch, self.ema.step, lr, float(mean[0]), float(mean[1]), self.clock.seconds)

    def _epoch_record(self, epoch: int) -> EpochRecord:
        with self.clock.into("test"):
            loss, accuracy = evaluate(self.model, *self.test)
        with self.clock.into("test_ema"), self.ema.average_parameters():
            ema_loss, ema_accuracy = evaluate(self.model, *self.test)
        return EpochRecord(epoch, self.ema.step, loss, ema_loss, accuracy, ema_accuracy, self.clock.seconds)


class Clock:
    """Adds wall-clock time to the fields of `Seconds`; waits for a GPU, which works behind our back."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = Seconds()
        self._wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(
            device.type, lambda: None
        )

    @contextmanager
    def into(self, account: str) -> Generator[None]:
        """Add the time spent inside to one account."""
        start = time.perf_counter()
        yield
        self._wait()
        spent = getattr(self.seconds, account) + time.perf_counter() - start
        self.seconds = replace(self.seconds, **{account: spent})


@torch.no_grad()
def evaluate(model: nn.Module, pixels: Tensor, labels: Tensor, batch: int = 1000) -> tuple[float, float]:
    """Mean cross-entropy and accuracy of a model over all images."""
    model.eval()
    loss, right = 0.0, 0
    for x, y in zip(torch.split(pixels, batch), torch.split(labels, batch), strict=True):
        scores = model(to_input(x))
        loss += cross_entropy(scores, y, reduction="sum").item()
        right += int((scores.argmax(1) == y).sum())
    return loss / len(labels), right / len(labels)


def cosine(epoch: int, epochs: int) -> float:
    """Learning rate of an epoch counted from 0: ½(first + last) + ½(first - last)·cos(π·epoch/epochs).

    The annealing of Loshchilov and Hutter 2017 (arXiv 1608.03983), one value per epoch; `last` itself would
    be the rate of the epoch after the run.
    """
    return LR_LAST + (LR_FIRST - LR_LAST) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def to_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images as bytes and the labels, on the device."""
    return torch.from_numpy(split.pixels).to(device), torch.from_numpy(split.labels).to(device)


def pick_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU when there is one.

    Raises:
        ConfigError: torch does not know the name, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises differs by build
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device={name!r} cannot be used here: {reason}. Leave it out, or say cpu"
        ) from error
