"""Who takes part: every engine and framework, as one row each. A new row inherits every test.

A member averages named arrays: it is made from the first ones, steps through later ones, and gives its
average back as NumPy. ``tolerance`` is relative to the largest weight of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

import polyak

Arrays = Mapping[str, np.ndarray]


class Member(Protocol):
    def step(self, arrays: Arrays, **counts: int) -> None: ...

    def average(self, track: str | None = None) -> dict[str, np.ndarray]: ...

    def live(self) -> dict[str, np.ndarray]: ...

    @property
    def ema(self) -> Any: ...


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

    def __init__(
        self, arrays: Arrays, theta: torch.dtype, storage: torch.dtype | None, **options: Any
    ) -> None:
        self.model = Holder(arrays, theta)
        self.ema = polyak.EMA(self.model, dtype=storage, **options)

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


@dataclass(frozen=True)
class Row:
    make: Callable[..., Member]
    tolerance: float
    rounded: Callable[[np.ndarray], np.ndarray]  # what θ becomes in the member's own dtype


def _through(dtype: torch.dtype) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: torch.from_numpy(np.array(a)).to(dtype).double().numpy() if a.dtype.kind == "f" else a


def _torch(engine: str, theta: torch.dtype, storage: Any, tolerance: float, **more: Any) -> Row:
    return Row(
        lambda arrays, **o: Torch(arrays, theta, storage, engine=engine, **more, **o),
        tolerance,
        _through(theta),
    )


f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

MEMBERS = {
    f"torch {engine}, {name}": row
    for engine in ("foreach", "blocked", "native")
    for name, row in {
        "float32": _torch(engine, f32, None, 3e-6),
        "float64": _torch(engine, f64, None, 1e-13),
        "bfloat16 into float32": _torch(engine, bf16, None, 3e-6),
        "float16 into float32": _torch(engine, f16, None, 3e-6),
        "float32 into float64": _torch(engine, f32, f64, 1e-13),
        "bfloat16 into float64": _torch(engine, bf16, f64, 1e-13),
        "float64 into float32": _torch(engine, f64, f32, 3e-6),
        "float32, compensated": _torch(engine, f32, None, 3e-7, compensated=True),
        "float32 into bfloat16": _torch(engine, f32, bf16, 0.15),
        "float32 into float16": _torch(engine, f32, f16, 0.02),
        "float32 into split": _torch(engine, f32, "split", 0.02),
    }.items()
}
