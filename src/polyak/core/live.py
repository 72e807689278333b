"""Which live tensors hold an average now, whosever it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from polyak.errors import SwapError

_held: set[int] = set()  # ids; the tensors are kept alive by the swap that put averages into them


def claim(names: Mapping[int, str], undo: ExitStack) -> None:
    """These tensors, names by id, are about to hold an average, until ``undo`` unwinds.

    Raises:
        SwapError: one of them already does.
    """
    if not _held.isdisjoint(names):
        taken = next(name for one, name in names.items() if one in _held)
        raise SwapError(
            f"{taken} already holds another average: leave that block, or call its restore(), first."
        )
    undo.callback(_held.difference_update, names)
    _held.update(names)


def none_held() -> bool:
    """Whether no tensor at all does, which is so at most times and told at once."""
    return not _held


def held(ids: Iterable[int]) -> bool:
    """Whether any of them does."""
    return not _held.isdisjoint(ids)
