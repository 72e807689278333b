"""The engine for CPUs where the C kernel was built: one parallel region, one read of θ for all tracks.

The table of addresses is made once. It is good as long as the plan is: the plan notices before every
update when θ has moved, and the averages' memory is kept alive here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.torch.engines import _native
from polyak.torch.engines.contract import Counts, Pair

_LIVE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_STORE: dict[tuple[torch.dtype, torch.dtype | None], int] = {
    (torch.float32, None): 0,
    (torch.float64, None): 1,
    (torch.bfloat16, None): 2,
    (torch.float16, None): 3,
    (torch.bfloat16, torch.int8): 4,
    (torch.float32, torch.float32): 5,
}


class Native:
    """Averages on the CPU prepared for updating; see ``Foreach``.

    Args:
        pairs: θ and averages by name, none of them empty, such as the kernel ``takes``.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    counts: Counts | None = None

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        groups: dict[int, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(_STORE[_storage(pair)], []).append(pair)
        self.pairs: Sequence[Pair] = [pair for group in groups.values() for pair in group]
        self.name = f"native ({_native.variants()[0]})"
        self._seed = seed
        # Aliases, so that the memory stays even if somebody points the averages elsewhere.
        self._kept = [tensor.detach() for pair in pairs for tensor in (*pair.averages, *pair.lows)]
        self._tables = [
            (_native.table(store, len(group[0].averages), list(map(_row, group))), len(group))
            for store, group in groups.items()
        ]
        self._nothing = [None] * len(self._tables)

    def bad(self) -> list[str]:
        threads = torch.get_num_threads()
        marks = self._marks([_native.look(table, threads) for table, _ in self._tables])
        return [pair.name for pair, bad in zip(self.pairs, marks, strict=True) if bad]

    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        threads = torch.get_num_threads()
        found = [_native.update(table, weights, self._seed, step, skip, threads) for table, _ in self._tables]
        return None if found == self._nothing else torch.tensor(self._marks(found), dtype=torch.bool)

    def _marks(self, found: Sequence[bytes | None]) -> list[int]:
        """0 or 1 for each pair, from what the kernel says of each table."""
        each = [marks or bytes(size) for marks, (_, size) in zip(found, self._tables, strict=True)]
        return list(b"".join(each))


def takes(pair: Pair) -> bool:
    """Whether the kernel knows these dtypes and can see the tensors as plain memory."""
    tensors = (pair.live, *pair.averages)
    known = pair.live.dtype in _LIVE and _storage(pair) in _STORE
    return known and all(t.device.type == "cpu" for t in tensors) and pair.dense


def _storage(pair: Pair) -> tuple[torch.dtype, torch.dtype | None]:
    return pair.storage, pair.lows[0].dtype if pair.lows else None


def _row(pair: Pair) -> tuple[int, int, int, int, tuple[int, ...], tuple[int, ...]]:
    averages, lows = (tuple(map(Tensor.data_ptr, tensors)) for tensors in (pair.averages, pair.lows))
    live = pair.live
    return live.data_ptr(), _LIVE[live.dtype], live.numel(), pair.key, averages, lows or (0,) * len(averages)
