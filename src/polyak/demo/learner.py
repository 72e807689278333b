"""The demo's interface to a framework: a small network, its average, and one training step.

``in_torch`` and ``in_paddle`` implement it with LeNet-5 in its modern form (LeCun et al. 1998), 62,006
parameters, and AdamW. Images and losses stay on the device; T is the framework's tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from polyak.demo.data import Split
from polyak.demo.options import Options

T = TypeVar("T")

BATCH = 64
TEST_BATCH = 1000


class Scores(NamedTuple):
    """A network evaluated on some images: mean cross-entropy, and accuracy in 0 … 1."""

    loss: float
    accuracy: float


class Average(Protocol):
    """The part of ``EMA`` that the demo uses, the same in every framework."""

    @property
    def step(self) -> int: ...
    def __call__(self, inputs: Any) -> Any: ...
    def update(self) -> None: ...
    def average_parameters(self) -> AbstractContextManager[Any]: ...
    def save(self, path: Path) -> None: ...


class Learner(ABC, Generic[T]):
    """A network in training and its average, both from ``options``.

    Raises:
        ConfigError: the framework does not know the device, or this machine does not have it.
    """

    ema: Average
    where: str

    @abstractmethod
    def __init__(self, options: Options) -> None: ...

    @abstractmethod
    def hold(self, split: Split) -> tuple[T, T]:
        """The images as bytes and their labels, on the device."""

    @abstractmethod
    def shuffled(self, pixels: T, labels: T) -> Iterator[tuple[T, T]]:
        """Batches of inputs and labels, every image once, in a new order."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Set the learning rate."""

    @abstractmethod
    def watch(self, inputs: T, labels: T) -> T:
        """The average's loss on a batch."""

    @abstractmethod
    def step(self, inputs: T, labels: T) -> T:
        """Train on a batch => the loss before."""

    @abstractmethod
    def mean(self, losses: Sequence[T]) -> float:
        """The mean of losses."""

    @abstractmethod
    def evaluate(self, pixels: T, labels: T, batch: int = TEST_BATCH) -> Scores:
        """Evaluate the live network, raw or averaged, on all of these images."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for the device."""


def choose(options: Options) -> Learner[Any]:
    """The learner of the chosen framework, which is imported here.

    Raises:
        ConfigError: the framework does not know the device, or this machine does not have it.
    """
    if options.chosen == "torch":
        from polyak.demo.in_torch import TorchLearner

        return TorchLearner(options)
    from polyak.demo.in_paddle import PaddleLearner

    return PaddleLearner(options)
