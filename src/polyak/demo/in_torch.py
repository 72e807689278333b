"""The demo in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import polyak
from polyak.demo.data import CLASSES, SIDE, Split
from polyak.demo.learner import BATCH, TEST_BATCH, Learner, Scores
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


class TorchLearner(Learner[Tensor]):
    """See ``Learner``."""

    def __init__(self, options: Options) -> None:
        self.device = pick_device(options.device)
        self.where = str(self.device)
        torch.manual_seed(options.seed)
        self.model = lenet().to(self.device)
        self.ema = polyak.EMA(self.model, options.schedule)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.order = torch.Generator().manual_seed(options.seed)

    def hold(self, split: Split) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(split.pixels).to(self.device), torch.from_numpy(split.labels).to(self.device)

    def shuffled(self, pixels: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels), generator=self.order).to(self.device)
        for batch in torch.split(order, BATCH):
            yield to_input(pixels[batch]), labels[batch]

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def watch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.ema(inputs), labels)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.model.train()
        loss = cross_entropy(self.model(inputs), labels)
        self.optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.step()
        return loss.detach()

    def mean(self, losses: Sequence[Tensor]) -> float:
        return float(torch.stack([*losses]).mean())

    @torch.no_grad()
    def evaluate(self, pixels: Tensor, labels: Tensor, batch: int = TEST_BATCH) -> Scores:
        self.model.eval()
        loss, right = 0.0, 0
        for x, y in zip(torch.split(pixels, batch), torch.split(labels, batch), strict=True):
            scores = self.model(to_input(x))
            loss += cross_entropy(scores, y, reduction="sum").item()
            right += int((scores.argmax(1) == y).sum())
        return Scores(loss / len(labels), right / len(labels))

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
