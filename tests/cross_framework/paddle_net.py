"""The network that crosses over, in PaddlePaddle."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

import polyak
from polyak.paddle import EMA


class Net(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2D(2, 4, 3, bias_attr=False), nn.BatchNorm2D(4), nn.ReLU())
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)

    def forward(self, images: paddle.Tensor, words: paddle.Tensor) -> paddle.Tensor:
        return self.linear(self.norm(self.conv(images).mean((2, 3)) + self.embedding(words)))


def averaged() -> EMA:
    """The average of a short training."""
    paddle.seed(0)
    net = Net()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=net.parameters())
    ema = EMA(net, polyak.Warmup(0.9))
    for _ in range(30):
        net(paddle.randn([8, 2, 6, 6]), paddle.randint(0, 7, [8])).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
        ema.update()
    return ema


def output(net: nn.Layer, images: np.ndarray, words: np.ndarray) -> np.ndarray:
    net.eval()
    with paddle.no_grad():
        return net(paddle.to_tensor(images), paddle.to_tensor(words)).numpy()
