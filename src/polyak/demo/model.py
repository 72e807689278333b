"""The network of the demo: LeNet-5 in its modern form (LeCun et al. 1998), 62,006 parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyak.demo.data import CLASSES, SIDE


def lenet() -> nn.Sequential:
    """Two convolutions and three linear layers: float [b, 3, 32, 32] in, scores [b, 10] out."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5),  # => [b, 6, 28, 28]
        nn.ReLU(),
        nn.MaxPool2d(2),  # => [b, 6, 14, 14]
        nn.Conv2d(6, 16, 5),  # => [b, 16, 10, 10]
        nn.ReLU(),
        nn.MaxPool2d(2),  # => [b, 16, 5, 5]
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, CLASSES),
    )


def to_input(pixels: Tensor) -> Tensor:
    """uint8 [b, 1 or 3, 32, 32] to float32 [b, 3, 32, 32] in [-1, 1]; grey is three equal channels."""
    return pixels.to(torch.float32).div_(127.5).sub_(1).expand(-1, 3, SIDE, SIDE)
