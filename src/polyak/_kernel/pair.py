"""What an engine is given, whatever the framework, and how ``metrics`` describes it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

Store: TypeAlias = tuple[str, str | None]


class TensorLike(Protocol):
    """What every framework's tensors have."""

    @property
    def dtype(self) -> Any: ...

    def data_ptr(self) -> int: ...

    def numel(self) -> Any: ...


T = TypeVar("T", bound=TensorLike)


@dataclass(frozen=True)
class Pair(Generic[T]):
    """θ and its averages, one per track.

    averages: all of one dtype and device.
    residuals: what is kept of each average below its own precision: int8 under bfloat16 ("split"), float32
        under float32 ("compensated"), or nothing.
    buffer: θ is a buffer, which forward passes write, not only the optimizer.
    key: by which the random bits of this tensor differ from those of others, in any order.
    """

    name: str
    live: T
    averages: tuple[T, ...]
    residuals: tuple[T, ...] = ()
    buffer: bool = False
    key: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", zlib.crc32(self.name.encode()))

    @property
    def tensors(self) -> tuple[T, ...]:
        return (self.live, *self.averages, *self.residuals)

    @property
    def written(self) -> tuple[T, ...]:
        """What an update writes."""
        return (*self.averages, *self.residuals)

    @property
    def dtype(self) -> str:
        """The name of θ's dtype, such as "bfloat16"."""
        return _name(self.live)

    @property
    def store(self) -> Store:
        """The names of the averages' dtype and of the residuals'."""
        return _name(self.averages[0]), _name(self.residuals[0]) if self.residuals else None


def describe(name: str, preferred: str, why_no_faster: str) -> str:
    """An engine for ``metrics``: its name, and why it is not a faster one."""
    if name == preferred:
        return f"{name} (asked for)"
    return f"{name} ({why_no_faster})" if why_no_faster else name


def _name(tensor: TensorLike) -> str:
    return str(tensor.dtype).rpartition(".")[2]
