"""The C kernel behind every framework: tensors are addresses, and a table of them is made once.

Whoever makes ``Tables`` keeps the memory alive and notices when a live tensor moves. Importing this fails
where the kernel was not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from polyak._kernel import _native

VARIANT = _native.variants()[0]  # the instruction set in use

_LIVE = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
_STORE: dict[tuple[str, str | None], int] = {
    ("float32", None): 0,
    ("float64", None): 1,
    ("bfloat16", None): 2,
    ("float16", None): 3,
    ("bfloat16", "int8"): 4,
    ("float32", "float32"): 5,
}


class Row(NamedTuple):
    """θ and its averages, as the kernel sees them.

    live, averages, lows: addresses, one average per track; lows are 0 where averages have one part.
    dtype: of θ.  store: dtype of the averages, and of what is kept below them or None.
    size: elements.  key: tells the random bits of this tensor from those of others.
    """

    live: int
    dtype: str
    store: tuple[str, str | None]
    size: int
    key: int
    averages: tuple[int, ...]
    lows: tuple[int, ...]


class Tables:
    """Averages prepared for updating, one table for each form they are stored in.

    Args:
        rows: at least one, each such as the kernel ``takes``.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_STORE[row.store], []).append(i)
        self._seed, self._size = seed, len(rows)
        self._tables = [
            (_native.table(store, len(rows[0].averages), [_entry(rows[i]) for i in group]), group)
            for store, group in groups.items()
        ]
        self._nothing = [None] * len(self._tables)

    def look(self, threads: int) -> list[int]:
        """For each row 1 if it has elements that cannot be stored, else 0."""
        return self._marks([_native.look(table, threads) for table, _ in self._tables])

    def update(self, weights: Sequence[float], step: int, skip: bool, threads: int) -> list[int] | None:
        """``avg ← avg + w·(θ - avg)``; the same marks under ``skip``, None if they are all 0."""
        found = [_native.update(table, weights, self._seed, step, skip, threads) for table, _ in self._tables]
        return None if found == self._nothing else self._marks(found)

    def applied(self, step: int) -> bool | None:
        """Whether the averages took the update of this step; None if some tables did.

        The kernel notes the step itself: between an update and a note in Python an interrupt could come.
        """
        answers = {_native.taken(table) == step for table, _ in self._tables}
        return answers.pop() if len(answers) == 1 else None

    def _marks(self, found: Sequence[bytes | None]) -> list[int]:
        marks = [0] * self._size
        for bad, (_, group) in zip(found, self._tables, strict=True):
            for i, mark in zip(group, bad or bytes(len(group)), strict=True):
                marks[i] = mark
        return marks


def takes(dtype: str, store: tuple[str, str | None]) -> bool:
    """Whether the kernel knows these dtypes."""
    return dtype in _LIVE and store in _STORE


def _entry(row: Row) -> tuple[int, int, int, int, tuple[int, ...], tuple[int, ...]]:
    return row.live, _LIVE[row.dtype], row.size, row.key, row.averages, row.lows
