"""The engine on the C kernel, for every framework: tensors are addresses, and tables of them are made once.

Importing this fails where the kernel was not built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic

from polyak._kernel import _native
from polyak._kernel.pair import Pair, Store, T

VARIANT = _native.variants()[0]  # the instruction set in use

_LIVE = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
_STORE: dict[Store, int] = {
    ("float32", None): 0,
    ("float64", None): 1,
    ("bfloat16", None): 2,
    ("float16", None): 3,
    ("bfloat16", "int8"): 4,
    ("float32", "float32"): 5,
}


class Native(Generic[T]):
    """Averages on the CPU: one parallel region, one read of θ for all tracks.

    The tables are good as long as the plan is, which notices before every update when θ has moved.

    Args:
        pairs: at least one, none without elements, each such as the kernel ``takes``.
        seed: makes, with the step, the random bits that round 16-bit averages.
        alias: a second tensor on the same memory, so that averages keep theirs wherever they are pointed.
        threads: how many to use; called at each update.
    """

    counts = None  # its caller counts

    def __init__(
        self, pairs: Sequence[Pair[T]], seed: int, alias: Callable[[T], T], threads: Callable[[], int]
    ) -> None:
        self.pairs, self.name = pairs, f"native ({VARIANT})"
        self._seed, self._threads = seed, threads
        self._kept = [alias(tensor) for pair in pairs for tensor in pair.written]
        groups: dict[int, list[int]] = {}
        for i, pair in enumerate(pairs):
            groups.setdefault(_STORE[pair.store], []).append(i)
        tracks = len(pairs[0].averages)
        self._tables = [
            (_native.table(store, tracks, [_row(pairs[i]) for i in group]), group)
            for store, group in groups.items()
        ]
        self._nothing = [None] * len(self._tables)

    def bad(self) -> list[str]:
        """Tensors with elements that cannot be stored."""
        marks = self._marks([_native.look(table, self._threads()) for table, _ in self._tables])
        return [pair.name for pair, mark in zip(self.pairs, marks, strict=True) if mark]

    def update(self, weights: Sequence[float], step: int, skip: bool) -> list[int] | None:
        """``avg ← avg + w·(θ - avg)``; under ``skip`` elements that cannot be stored keep their average.

        Returns:
            For each pair 1 if it has such elements, else 0; None if none has.
        """
        threads = self._threads()
        found = [_native.update(table, weights, self._seed, step, skip, threads) for table, _ in self._tables]
        return None if found == self._nothing else self._marks(found)

    def applied(self, step: int) -> bool | None:
        """Whether the averages took the update of this step; None if some tables did.

        The kernel notes the step itself: between an update and a note in Python an interrupt could come.
        """
        answers = {_native.taken(table) == step for table, _ in self._tables}
        return answers.pop() if len(answers) == 1 else None

    def _marks(self, found: Sequence[bytes | None]) -> list[int]:
        marks = [0] * len(self.pairs)
        for bad, (_, group) in zip(found, self._tables, strict=True):
            for i, mark in zip(group, bad or bytes(len(group)), strict=True):
                marks[i] = mark
        return marks


def takes(pair: Pair[Any]) -> bool:
    """Whether the kernel knows these dtypes."""
    return pair.dtype in _LIVE and pair.store in _STORE


def _row(pair: Pair[Any]) -> tuple[int, int, int, int, int, tuple[int, ...], tuple[int, ...]]:
    averages = tuple(tensor.data_ptr() for tensor in pair.averages)
    residuals = tuple(tensor.data_ptr() for tensor in pair.residuals) or (0,) * len(averages)
    size = int(pair.live.numel())
    return pair.live.data_ptr(), _LIVE[pair.dtype], size, pair.offset, pair.key, averages, residuals
