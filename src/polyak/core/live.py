"""Which live tensors hold an average now, whosever it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack

from polyak.errors import SwapError

_held: set[int] = set()  # ids; the tensors are kept alive by the swap that put averages into them


def claim(ids: Collection[int], undo: ExitStack, name: str) -> None:
    """These tensors are about to hold an average, until ``undo`` unwinds.

    Raises:
        SwapError: one of them already does; ``name`` says whose they are.
    """
    if not _held.isdisjoint(ids):
        raise SwapError(
            f"{name} already holds another average: leave that block, or call its restore(), first."
        )
    undo.callback(_held.difference_update, ids)
    _held.update(ids)


def none_held() -> bool:
    """Whether no tensor at all does, which is so at most times and told at once."""
    return not _held


def held(ids: Iterable[int]) -> bool:
    """Whether any of them does."""
    return not _held.isdisjoint(ids)
