"""The tensors of an engine, for both frameworks, and an engine's description in ``metrics``."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

Store: TypeAlias = tuple[str, str | None]
Pick: TypeAlias = Callable[[Sequence[float]], Sequence[float]]


class TensorLike(Protocol):
    """The attributes that the frameworks' tensors share."""

    @property
    def dtype(self) -> Any: ...

    def data_ptr(self) -> int: ...

    def numel(self) -> Any: ...


T = TypeVar("T", bound=TensorLike)


@dataclass(frozen=True)
class Pair(Generic[T]):
    """θ and its averages, one per track.

    averages: all of one dtype and device.
    residuals: the low part of each average: int8 under bfloat16 ("split"), float32 under float32
        ("compensated"), or none.
    buffer: θ is a buffer, which forward passes write too, not only the optimizer.
    offset: of the first element in the whole tensor, where this is a piece of one.
    places: of the averages' decays among those of an update; () if they are all of them, in order.
    key: a hash of the name, which makes the random bits of each tensor different.
    """

    name: str
    live: T
    averages: tuple[T, ...]
    residuals: tuple[T, ...] = ()
    buffer: bool = False
    offset: int = 0
    places: tuple[int, ...] = ()
    key: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", zlib.crc32(self.name.encode()))

    @property
    def tensors(self) -> tuple[T, ...]:
        return (self.live, *self.averages, *self.residuals)

    @property
    def written(self) -> tuple[T, ...]:
        """The tensors that an update writes."""
        return (*self.averages, *self.residuals)

    @property
    def dtype(self) -> str:
        """The name of θ's dtype, such as "bfloat16"."""
        return _name(self.live)

    @property
    def store(self) -> Store:
        """The names of the averages' dtype and of the residuals'."""
        return _name(self.averages[0]), _name(self.residuals[0]) if self.residuals else None


def pick(places: Sequence[int]) -> Pick | None:
    """The weights at these places among those of an update; None if there are no others."""
    return (lambda weights: tuple([weights[place] for place in places])) if places else None


def describe(name: str, preferred: str, why_no_faster: str) -> str:
    """An engine for ``metrics``: its name, and why not a faster one."""
    if name == preferred:
        return f"{name} (requested)"
    return f"{name} ({why_no_faster})" if why_no_faster else name


def _name(tensor: TensorLike) -> str:
    return str(tensor.dtype).rpartition(".")[2]
