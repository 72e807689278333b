"""What an engine is given and what it must do."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """θ and its averages, one per track.

    averages: all of one dtype and device.
    lows: what is kept of each average below its own precision: int8 under bfloat16 ("split"), float32
        under float32 ("compensated"), or nothing.
    buffer: θ is a buffer, which forward passes write, not only the optimizer.
    """

    name: str
    live: Tensor
    averages: tuple[Tensor, ...]
    lows: tuple[Tensor, ...] = ()
    buffer: bool = False
    key: int = field(init=False)  # tells the random bits of this tensor from those of others, in any order

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", zlib.crc32(self.name.encode()))

    @property
    def storage(self) -> torch.dtype:
        return self.averages[0].dtype

    @property
    def arithmetic(self) -> torch.dtype:
        """The dtype θ is averaged in."""
        return self.storage if self.storage.itemsize >= 4 else torch.float32

    @property
    def dense(self) -> bool:
        """Whether θ and averages fill their memory in one order, so that element i of one is i of all."""
        tensors = (self.live, *self.averages, *self.lows)
        order = sorted(range(self.live.dim()), key=lambda d: -self.live.stride(d))
        return (
            all(t.stride() == self.live.stride() for t in tensors)
            and self.live.permute(order).is_contiguous()
        )


@dataclass(frozen=True)
class Counts:
    """tensors: int32 [pairs], updates in which each could not be stored.  updates: int32 [], in which any."""

    tensors: Tensor
    updates: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Counts:
        device = pairs[0].averages[0].device if pairs else torch.device("cpu")
        zeros = [torch.zeros(shape, dtype=torch.int32, device=device) for shape in ([len(pairs)], [])]
        return cls(*zeros)


class Engine(Protocol):
    """Averages some pairs. Made once, from at least one pair; ``update`` runs after every optimizer step.

    name: what ``metrics`` calls it.  pairs: in the order of the marks it returns.
    counts: where it counts by itself what it could not store; None if it leaves that to the caller.
    """

    @property
    def name(self) -> str: ...

    @property
    def pairs(self) -> Sequence[Pair]: ...

    @property
    def counts(self) -> Counts | None: ...

    def bad(self) -> list[str]:
        """Tensors with elements that are not finite or beyond the storage's range. Waits for the device."""
        ...

    def applied(self, step: int) -> bool | None:
        """Whether the averages took the update of this step; None if an interrupt came in its middle."""
        ...

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        """``avg ← avg + w·(θ - avg)`` in every track; ``weights[k]`` is 1-β of track k.

        Args:
            weights: one per track.
            step: the training step, which makes the random bits.
            skip: elements that cannot be stored keep their average.

        Returns:
            bool [pairs], where the averages are: which had such elements. None if none had, or if the
            engine counts them itself.
        """
        ...
