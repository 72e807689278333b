"""The tensors in what a pickle built, under names made of the keys that lead to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from polyak.checkpoints.formats.pickles import Record
from polyak.checkpoints.weights import Slot
from polyak.errors import CheckpointError

_MOST, _DEEPEST = 1_000_000, 100


def flattened(tree: Any) -> dict[str, Slot]:
    """Every tensor of nested dicts and lists by its path, joined with dots; pickled objects are left out.

    Raises:
        CheckpointError: the tree nests too deeply, or shares its branches so that it has no end.
    """
    return dict(_walked(tree, "", 0, iter(range(_MOST))))


def _walked(tree: Any, path: str, depth: int, budget: Iterator[int]) -> Iterator[tuple[str, Slot]]:
    if depth > _DEEPEST or next(budget, None) is None:
        raise CheckpointError(
            f"it nests more than {_DEEPEST} deep or holds more than {_MOST:,} values: it is malformed."
        )
    if isinstance(tree, Slot):
        yield path, tree
        return
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree).items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(cast("list[Any]", tree))
    else:
        return
    for key, value in items:
        if isinstance(value, (Slot, Mapping, list, tuple)) and not isinstance(value, Record):
            yield from _walked(value, f"{path}.{key}" if path else str(key), depth + 1, budget)
