"""A model turns to another memory layout while it is averaged: averages, copies and what is live follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyak import EMA

LAST = torch.channels_last
FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "split": {"dtype": "split"},
    "compensated": {"compensated": True},
    "two tracks": {"decay": {"a": 0.9, "b": 0.5}},
}


class Net(nn.Sequential):
    """Convolutions of every awkward size, and a buffer that is copied."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1), nn.Conv3d(1, 2, 3))
        self.register_buffer("table", torch.rand(2, 3, 4, 5))


def train(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5).add_(by)


def strides(model: nn.Module) -> dict[str, list[int]]:
    """Those that matter: an axis of one element may have any."""
    state = model.state_dict().items()
    return {n: [k for k, size in zip(t.stride(), t.shape, strict=True) if size > 1] for n, t in state}


def values(ema: EMA) -> dict[str, Tensor]:
    return {f"{t.name}/{name}": t.value(name).clone() for t in ema.tracks.values() for name in t.tensors}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_averages_take_the_models_layout_whenever_it_turns(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, plain = Net(), Net()
    plain.load_state_dict(model.state_dict())
    ema, beside = EMA(model, **{"decay": 0.9, **options}), EMA(plain, **{"decay": 0.9, **options})
    for step, layout in enumerate([torch.contiguous_format, LAST, LAST, torch.contiguous_format, LAST]):
        if step:
            nn.ModuleList([model[0], model[1], model[2]]).to(memory_format=layout)
            model.table.data = model.table.contiguous(memory_format=layout)
        for one, average in ((model, ema), (plain, beside)):
            train(one, 0.1 * step)
            average.update()
        ours = strides(model)
        assert strides(ema.module) == ours
        for track in ema.tracks:
            with ema.average_parameters(track):
                assert strides(model) == ours
    assert ours["0.weight"] != strides(plain)["0.weight"]
    for (name, mine), theirs in zip(values(ema).items(), values(beside).values(), strict=True):
        if "dtype" not in options:  # random bits go by position in memory
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7, msg=name)
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-2, msg=name)


def test_a_layout_that_stays_costs_no_copy() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=LAST)
    ema = EMA(model, 0.9)
    average = ema.tracks["average"].tensors["weight"]
    model.weight.data = model.weight.data.clone(memory_format=torch.preserve_format)
    ema.update()
    assert ema.tracks["average"].tensors["weight"] is average
