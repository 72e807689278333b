"""The options of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Params: TypeAlias = Literal["float32", "float64", "bfloat16", "float16"]
Store: TypeAlias = Literal["float32", "float64", "bfloat16", "float16", "split", "compensated"]
Engine: TypeAlias = Literal["auto", "native", "triton", "blocked", "foreach"]


@dataclass(frozen=True)
class Options:
    """One benchmark.

    Args:
        model: a name of ``shapes.MODELS``, or "YOUR.module:factory".
        engine: of polyak; None measures every engine that runs on the device.
        dtype: storage of the averages.
        params: dtype the model's floating parameters are cast to; None leaves them as they are built.
        tracks: number of averages, at least 1.
        threads: of torch; None leaves them as they are.
        rounds: number of rounds, at least 1; figures are medians over them.
        device: torch's name of it: "cpu", "cuda".
    """

    model: str = "resnet50"
    engine: Engine | None = None
    dtype: Store = "float32"
    params: Params | None = None
    tracks: int = 1
    threads: int | None = None
    rounds: int = 15
    device: str = "cpu"
