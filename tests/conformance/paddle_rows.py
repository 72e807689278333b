"""PaddlePaddle in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from polyak.paddle import EMA
from tests.conformance.row import FORMS, Arrays, Row


class Holder(nn.Layer):
    """A layer that only holds: floating arrays as parameters, others as buffers."""

    def __init__(self, arrays: Arrays, dtype: str) -> None:
        super().__init__()
        for name, value in arrays.items():
            tensor = paddle.to_tensor(np.array(value))
            if tensor.is_floating_point():
                parameter = self.create_parameter(tensor.shape, dtype=dtype)
                parameter.set_value(tensor.astype(dtype))
                self.add_parameter(name, parameter)
            else:
                self.register_buffer(name, tensor)


class Paddle:
    """polyak.paddle on one dtype of θ and one of storage."""

    def __init__(self, arrays: Arrays, theta: str, **options: Any) -> None:
        self.layer = Holder(arrays, theta)
        self.ema = EMA(self.layer, **options)

    def step(self, arrays: Arrays, **counts: int) -> None:
        for name, tensor in self.layer.state_dict().items():
            tensor.set_value(paddle.to_tensor(np.array(arrays[name])).astype(tensor.dtype))
        self.ema.update(**counts)

    def average(self, track: str | None = None) -> dict[str, np.ndarray]:
        kept = self.ema.tracks[track or next(iter(self.ema.tracks))]
        digits = {name: kept.value(name) for name in kept.tensors}
        return _numpy(self.ema.module_of(track).state_dict() | digits)

    def live(self) -> dict[str, np.ndarray]:
        return _numpy(self.layer.state_dict())


def _numpy(state: Mapping[str, paddle.Tensor]) -> dict[str, np.ndarray]:
    return {k: (v.astype("float64") if v.is_floating_point() else v).numpy() for k, v in state.items()}


def _row(engine: str, theta: str, storage: str | None, tolerance: float, more: dict[str, Any]) -> Row:
    def rounded(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind != "f":
            return array
        return paddle.to_tensor(np.array(array)).astype(theta).astype("float64").numpy()

    return Row(
        lambda arrays, **o: Paddle(arrays, theta, dtype=storage, engine=engine, **more, **o),
        tolerance,
        rounded,
    )


def _needs_the_kernel(storage: str | None, more: dict[str, Any]) -> bool:
    return storage not in (None, "float32", "float64") or bool(more)


ROWS = {
    f"paddle {engine}, {name}": _row(engine, *form)
    for engine in ("native", "ops")
    for name, form in FORMS.items()
    if engine == "native" or not _needs_the_kernel(form[1], form[3])
}
