"""Modules with a state besides tensors: kept where the file can hold it, named where it cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import polyak


class Scaled(nn.Module):
    """A layer as TransformerEngine's are."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.linear, self.state = nn.Linear(2, 2), state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_an_extra_state_that_is_a_tensor_is_saved_and_loads_strictly(tmp_path: Path) -> None:
    model = nn.Sequential(Scaled(torch.tensor([7], dtype=torch.uint8)), nn.Linear(2, 2))
    polyak.EMA(model).save(tmp_path / "a.safetensors")
    other = nn.Sequential(Scaled(torch.zeros(1, dtype=torch.uint8)), nn.Linear(2, 2))
    other.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert other[0].state.tolist() == [7]
    polyak.average_checkpoints([tmp_path / "a.safetensors"] * 2, tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors")["0._extra_state"].tolist() == [7]


def test_one_that_is_no_tensor_is_named_when_it_is_left_out(tmp_path: Path) -> None:
    ema = polyak.EMA(nn.Sequential(Scaled({"amax": 1.0})))
    with pytest.warns(UserWarning, match=r"0\._extra_state.*not in the file.*strict=False"):
        ema.save(tmp_path / "a.safetensors")
    found = Scaled(None)
    report = nn.Sequential(found).load_state_dict(load_file(tmp_path / "a.safetensors"), strict=False)
    assert report.missing_keys == ["0._extra_state"]
