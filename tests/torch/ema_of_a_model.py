"""An ``EMA`` knows the class of its model; pyright checks this file, no test runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import polyak
import polyak.torch


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def encode(self, x: Tensor) -> Tensor:
        return x


ema = polyak.torch.EMA(Encoder(), 0.9)
assert_type(ema, polyak.torch.EMA[Encoder])
assert_type(ema.model, Encoder)
assert_type(ema.module.encode(torch.ones(2)), Tensor)
assert_type(polyak.EMA(Encoder()).module, Encoder)
with ema.average_parameters() as live:
    assert_type(live, Encoder)


def module_of(ema: polyak.torch.EMA) -> nn.Module:
    return ema.module


module_of(ema)
ema.copy_to(nn.DataParallel(ema.model))
