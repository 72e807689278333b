"""The demo in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import polyak
from polyak.demo.data import CLASSES, SIDE, Split
from polyak.demo.learner import BATCH, Learner
from polyak.demo.options import Options
from polyak.errors import ConfigError

_WAIT: dict[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}


def lenet() -> nn.Sequential:
    """Two convolutions and three linear layers: float [b, 3, 32, 32] in, scores [b, 10] out."""
    first = nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)  # => [b, 6, 14, 14]
    second = nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)  # => [b, 16, 5, 5]
    linear = nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES)
    return nn.Sequential(*first, *second, nn.Flatten(), *linear)


def to_input(pixels: Tensor) -> Tensor:
    """uint8 [b, 1 or 3, 32, 32] to float32 [b, 3, 32, 32] in [-1, 1]; grey is three equal channels."""
    return pixels.to(torch.float32).div_(127.5).sub_(1).expand(-1, 3, SIDE, SIDE)


class TorchLearner(Learner):
    """See ``Learner``."""

    to_input, cross_entropy = staticmethod(to_input), staticmethod(cross_entropy)
    no_grad = torch.no_grad

    def __init__(self, options: Options) -> None:
        self.device = pick_device(options.device)
        self.where = str(self.device)
        torch.manual_seed(options.seed)
        self.model = lenet().to(self.device)
        self.ema = polyak.EMA(self.model, options.schedule)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.order = torch.Generator().manual_seed(options.seed)

    def load(self, weights: Mapping[str, Any]) -> None:
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})

    def to_device(self, split: Split) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(split.pixels).to(self.device), torch.from_numpy(split.labels).to(self.device)

    def shuffled(self, pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=self.order).to(self.device)
        for batch in torch.split(order, BATCH):
            yield to_input(pixels[batch]), labels[batch]

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.model.train()
        loss = cross_entropy(self.model(inputs), labels)
        self.optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.step()
        return loss.detach()

    def wait(self) -> None:
        if self.device.type in _WAIT:
            _WAIT[self.device.type]()


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
