"""What a member of the table is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Member(Protocol):
    def step(self, arrays: Arrays, **counts: int) -> None: ...

    def average(self, track: str | None = None) -> dict[str, np.ndarray]: ...

    def live(self) -> dict[str, np.ndarray]: ...

    @property
    def ema(self) -> Any: ...


@dataclass(frozen=True)
class Row:
    """``tolerance`` is relative to the largest weight of the run."""

    make: Callable[..., Member]
    tolerance: float
    rounded: Callable[[np.ndarray], np.ndarray]  # what θ becomes in the member's own dtype


# θ, storage (None: by default), tolerance, further options: what every framework's fastest engine takes.
FORMS: dict[str, tuple[str, str | None, float, dict[str, Any]]] = {
    "float32": ("float32", None, 3e-6, {}),
    "float64": ("float64", None, 1e-13, {}),
    "bfloat16 into float32": ("bfloat16", None, 3e-6, {}),
    "float16 into float32": ("float16", None, 3e-6, {}),
    "float32 into float64": ("float32", "float64", 1e-13, {}),
    "bfloat16 into float64": ("bfloat16", "float64", 1e-13, {}),
    "float64 into float32": ("float64", "float32", 3e-6, {}),
    "float32, compensated": ("float32", None, 3e-7, {"compensated": True}),
    "float32 into bfloat16": ("float32", "bfloat16", 0.15, {}),
    "float32 into float16": ("float32", "float16", 0.02, {}),
    "float32 into split": ("float32", "split", 0.02, {}),
}
