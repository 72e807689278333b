"""PyTorch in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import polyak
from tests.conformance.row import FORMS, Arrays, Row


class Holder(nn.Module):
    """A module that only holds: floating arrays as parameters, others as buffers."""

    def __init__(self, arrays: Arrays, dtype: torch.dtype) -> None:
        super().__init__()
        for name, value in arrays.items():
            tensor = torch.from_numpy(np.array(value))
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.to(dtype)))
            else:
                self.register_buffer(name, tensor)


class Torch:
    """polyak.torch on one dtype of θ and one of storage."""

    def __init__(self, arrays: Arrays, theta: torch.dtype, **options: Any) -> None:
        self.model = Holder(arrays, theta)
        self.ema = polyak.EMA(self.model, **options)

    def step(self, arrays: Arrays, **counts: int) -> None:
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(torch.from_numpy(np.array(arrays[name])))
        self.ema.update(**counts)

    def average(self, track: str | None = None) -> dict[str, np.ndarray]:
        kept = self.ema.tracks[track or next(iter(self.ema.tracks))]
        digits = {name: kept.value(name) for name in kept.tensors}
        return _numpy(self.ema.module_of(track).state_dict() | digits)

    def live(self) -> dict[str, np.ndarray]:
        return _numpy(self.model.state_dict())


def _numpy(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {k: (v.double() if v.is_floating_point() else v).numpy().copy() for k, v in state.items()}


def _row(engine: str, theta: str, storage: str | None, tolerance: float, more: dict[str, Any]) -> Row:
    dtype = getattr(torch, theta)
    stored = storage if storage in (None, "split") else getattr(torch, storage)

    def rounded(array: np.ndarray) -> np.ndarray:
        return (
            torch.from_numpy(np.array(array)).to(dtype).double().numpy() if array.dtype.kind == "f" else array
        )

    return Row(
        lambda arrays, **o: Torch(arrays, dtype, dtype=stored, engine=engine, **more, **o), tolerance, rounded
    )


ROWS = {
    f"torch {engine}, {name}": _row(engine, *form)
    for engine in ("foreach", "blocked", "native")
    for name, form in FORMS.items()
}
