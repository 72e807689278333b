"""An ``EMA`` knows the class of its layer; pyright checks this file, no test runs it."""

from __future__ import annotations

import paddle
from paddle import Tensor, nn
from typing_extensions import assert_type

import polyak.paddle


class Encoder(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def encode(self, x: Tensor) -> Tensor:
        return x


ema = polyak.paddle.EMA(Encoder(), 0.9)
assert_type(ema, polyak.paddle.EMA[Encoder])
assert_type(ema.model, Encoder)
assert_type(ema.module.encode(paddle.ones([2])), Tensor)
with ema.average_parameters() as live:
    assert_type(live, Encoder)


def module_of(ema: polyak.paddle.EMA) -> nn.Layer:
    return ema.module


module_of(ema)
