"""The engine for CPUs where the C kernel was built: one parallel region, one read of θ for all tracks.

The table of addresses is made once. It is good as long as the plan is: the plan notices before every
update when θ has moved, and the averages' memory is kept alive here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak._kernel.native import VARIANT, Row, Tables
from polyak._kernel.native import takes as kernel_takes
from polyak.torch._engines.base import Counts, Pair


class Native:
    """Averages on the CPU prepared for updating; see ``Foreach``.

    Args:
        pairs: θ and averages by name, none of them empty, such as the kernel ``takes``.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    counts: Counts | None = None

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        self.pairs = pairs
        self.name = f"native ({VARIANT})"
        # Aliases, so that the memory stays even if somebody points the averages elsewhere.
        self._kept = [tensor.detach() for pair in pairs for tensor in (*pair.averages, *pair.lows)]
        self._tables = Tables(list(map(_row, pairs)), seed)

    def bad(self) -> list[str]:
        marks = self._tables.look(torch.get_num_threads())
        return [pair.name for pair, bad in zip(self.pairs, marks, strict=True) if bad]

    def applied(self, step: int) -> bool | None:
        return self._tables.applied(step)

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        marks = self._tables.update(weights, step, skip, torch.get_num_threads())
        return None if marks is None else torch.tensor(marks, dtype=torch.bool, device="cpu")


def takes(pair: Pair) -> bool:
    """Whether the kernel knows these dtypes and can see the tensors as plain memory."""
    tensors = (pair.live, *pair.averages)
    known = kernel_takes(_name(pair.live.dtype), _store(pair))
    return known and all(t.device.type == "cpu" for t in tensors) and pair.dense


def _row(pair: Pair) -> Row:
    averages, lows = (tuple(map(Tensor.data_ptr, tensors)) for tensors in (pair.averages, pair.lows))
    live, none = pair.live, (0,) * len(averages)
    return Row(
        live.data_ptr(), _name(live.dtype), _store(pair), live.numel(), pair.key, averages, lows or none
    )


def _store(pair: Pair) -> tuple[str, str | None]:
    return _name(pair.storage), _name(pair.lows[0].dtype) if pair.lows else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
