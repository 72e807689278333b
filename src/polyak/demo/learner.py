"""A small network in training and its average: the part common to torch and Paddle.

``in_torch`` and ``in_paddle`` implement the rest. The network is LeNet-5 in its modern form (LeCun et al.
1998), 62,006 parameters; the optimizer is AdamW. Images and losses stay on the device, as tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from polyak.demo.data import Split
from polyak.demo.options import Options

BATCH = 64
TEST_BATCH = 1000


class Scores(NamedTuple):
    """A network evaluated on some images: mean cross-entropy, and accuracy in 0 … 1."""

    loss: float
    accuracy: float


class Learner(ABC):
    """A network in training and its average, both from ``options``.

    ``ema`` is ``polyak.EMA`` or ``polyak.paddle.EMA``, which have the same methods.

    Raises:
        ConfigError: the framework does not know the device, or this machine does not have it.
    """

    model: Any
    ema: Any
    where: str
    to_input: Callable[[Any], Any]
    cross_entropy: Callable[..., Any]
    no_grad: Callable[[], AbstractContextManager[Any]]

    @abstractmethod
    def __init__(self, options: Options) -> None: ...

    @abstractmethod
    def load(self, weights: Mapping[str, Any]) -> None:
        """Give the network these weights, arrays by name."""

    @abstractmethod
    def to_device(self, split: Split) -> tuple[Any, Any]:
        """The images as bytes and their labels, on the device."""

    @abstractmethod
    def shuffled(self, pixels: Any, labels: Any) -> Iterator[tuple[Any, Any]]:
        """Batches of inputs and labels, every image once, in a new order."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Set the learning rate."""

    @abstractmethod
    def step(self, inputs: Any, labels: Any) -> Any:
        """Train on a batch => the loss before."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for the device."""

    def watch(self, inputs: Any, labels: Any) -> Any:
        """The average's loss on a batch."""
        return self.cross_entropy(self.ema(inputs), labels)

    def evaluate(self, pixels: Any, labels: Any, batch: int = TEST_BATCH) -> Scores:
        """Evaluate the live network, raw or averaged, on all of these images."""
        self.model.eval()
        loss, right = 0.0, 0
        with self.no_grad():
            for start in range(0, len(labels), batch):
                x, y = pixels[start : start + batch], labels[start : start + batch]
                scores = self.model(self.to_input(x))
                loss += float(self.cross_entropy(scores, y, reduction="sum"))
                right += int((scores.argmax(1) == y).sum())
        return Scores(loss / len(labels), right / len(labels))


def choose(options: Options) -> Learner:
    """The learner of the chosen framework, which is imported here.

    Raises:
        ConfigError: the framework does not know the device, or this machine does not have it.
    """
    if options.chosen == "torch":
        from polyak.demo.in_torch import TorchLearner

        return TorchLearner(options)
    from polyak.demo.in_paddle import PaddleLearner

    return PaddleLearner(options)
