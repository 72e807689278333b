"""The demo in PaddlePaddle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# First, as it imports Paddle without Paddle's own warnings and says what to install where it is missing.
from polyak.paddle import EMA

# isort: split

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn.functional import cross_entropy

from polyak.demo.data import CLASSES, SIDE, Split
from polyak.demo.learner import BATCH, Learner
from polyak.demo.options import Options
from polyak.errors import ConfigError


def lenet() -> nn.Sequential:
    """Two convolutions and three linear layers: float [b, 3, 32, 32] in, scores [b, 10] out."""
    first = nn.Conv2D(3, 6, 5), nn.ReLU(), nn.MaxPool2D(2)  # => [b, 6, 14, 14]
    second = nn.Conv2D(6, 16, 5), nn.ReLU(), nn.MaxPool2D(2)  # => [b, 16, 5, 5]
    linear = nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)
    return nn.Sequential(*first, *second, nn.Flatten(), *linear)


def to_input(pixels: Tensor) -> Tensor:
    """uint8 [b, 1 or 3, 32, 32] to float32 [b, 3, 32, 32] in [-1, 1]; grey is three equal channels."""
    return (pixels.astype("float32") / 127.5 - 1).expand([-1, 3, SIDE, SIDE])


class PaddleLearner(Learner):
    """See ``Learner``."""

    to_input, cross_entropy = staticmethod(to_input), staticmethod(cross_entropy)
    no_grad = paddle.no_grad

    def __init__(self, options: Options) -> None:
        self.device = pick_device(options.device)
        self.where = f"{self.device} with Paddle"
        paddle.seed(options.seed)
        self.model = lenet()
        self.ema = EMA(self.model, options.schedule)
        self.optimizer = paddle.optimizer.AdamW(parameters=self.model.parameters())
        self.order = np.random.default_rng(options.seed)

    def load(self, weights: Mapping[str, Any]) -> None:
        self.model.set_state_dict(dict(weights))

    def to_device(self, split: Split) -> tuple[Tensor, Tensor]:
        return paddle.to_tensor(split.pixels), paddle.to_tensor(split.labels)

    def shuffled(self, pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order.permutation(len(labels))
        for start in range(0, len(order), BATCH):
            batch = paddle.to_tensor(order[start : start + BATCH])
            yield to_input(pixels[batch]), labels[batch]

    def set_lr(self, lr: float) -> None:
        self.optimizer.set_lr(lr)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.model.train()
        loss = cross_entropy(self.model(inputs), labels)
        self.optimizer.clear_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def wait(self) -> None:
        if self.device != "cpu":
            paddle.device.synchronize()


def pick_device(name: str) -> str:
    """Make the device by name Paddle's own; "auto" is the GPU when there is one.

    Raises:
        ConfigError: Paddle does not know the name, or this machine has no such device.
    """
    if name == "auto":
        name = "gpu" if paddle.device.cuda.device_count() else "cpu"
    try:
        paddle.device.set_device(name)
    except ValueError as error:
        raise ConfigError(
            f"device={name!r} cannot be used here: {error}. Leave it out, or say cpu"
        ) from error
    return paddle.device.get_device()
