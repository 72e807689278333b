"""The interface of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from polyak._kernel.pair import Pair as KernelPair

Pair: TypeAlias = KernelPair[Tensor]
Marks: TypeAlias = Tensor | Sequence[int] | None


class Counts(NamedTuple):
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

    name: in ``metrics``.  pairs: in the order of the marks it returns.
    counts: its own counts of elements it could not store; None if it leaves counting to the caller.
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
        """Whether the update of this step was applied; None if an interrupt came in its middle."""
        ...

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Marks:
        """``avg ← avg + w·(θ - avg)`` in every track; ``weights[k]`` is 1-β of track k.

        Args:
            weights: one per track.
            step: the training step, which determines the random bits.
            skip: elements that cannot be stored keep their average.

        Returns:
            [pairs], where the averages are: which had such elements. None if none had, or if the engine
            counts them itself.
        """
        ...


def storage_dtype(pair: Pair) -> torch.dtype:
    """The dtype of the averages."""
    return pair.averages[0].dtype


def arithmetic_dtype(pair: Pair) -> torch.dtype:
    """The dtype θ is averaged in."""
    return storage_dtype(pair) if storage_dtype(pair).itemsize >= 4 else torch.float32


def is_dense(pair: Pair) -> bool:
    """Whether θ and averages fill their memory in one order, so that element i of one is i of all."""
    live = pair.live
    order = sorted(range(live.dim()), key=lambda d: -live.stride(d))
    return all(t.stride() == live.stride() for t in pair.tensors) and live.permute(order).is_contiguous()
