"""The tensors in what a pickle built, under names made of the keys that lead to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.source import Source
from polyak._foreign.numpy_pickle import ArraySlot
from polyak._foreign.pickle_objects import MOST
from polyak.errors import CheckpointError

_LONGEST = 1 << 12  # letters of a name
# Expanded and tied tensors repeat the bytes of a file: 6 kB could say that they are terabytes.
_REPEATED, EXPANDED = 8, 1 << 28


def checkpoint_of(source: Source, kind: str, tree: Any) -> Checkpoint:
    """A checkpoint of what a pickle built.

    Args:
        source: the file.
        kind: its format, as ``Checkpoint`` has it.
        tree: all that was pickled.

    Raises:
        CheckpointError: its tensors have no distinct names, or are larger than the file could hold.
    """
    slots = flattened(source.name, tree)
    return Checkpoint(
        source.name, kind, within(source.name, slots, source.size), others=tree, sources=(source,)
    )


def flattened(where: str, tree: Any) -> dict[str, LazyTensor]:
    """Every tensor of nested dicts and lists by its path, joined with dots; pickled objects are left out.

    Args:
        where: what messages call the file.
        tree: what was pickled.

    Raises:
        CheckpointError: two tensors have one path, or the paths together are longer than any model's.
    """
    slots: dict[str, LazyTensor] = {}
    letters = 0
    for path, slot in _walked(tree, ""):
        letters += len(path)
        if letters > MOST or len(path) > _LONGEST:
            raise CheckpointError(f"{where} is malformed: its names are longer than those of any model.")
        if path in slots:
            raise CheckpointError(f"{where} holds two tensors whose keys make up one name: {path!r}.")
        slots[path] = slot
    return slots


def within(where: str, slots: Mapping[str, LazyTensor], size: int) -> Mapping[str, LazyTensor]:
    """The same tensors, which a file of so many bytes can hold.

    Raises:
        CheckpointError: together they are much larger.
    """
    total = sum(slot.nbytes for slot in slots.values())
    if total > _REPEATED * size + EXPANDED:
        raise CheckpointError(
            f"{where} is malformed: its tensors take {total:,} bytes, which its {size:,} cannot make up."
        )
    return slots


def _walked(tree: Any, path: str) -> Iterator[tuple[str, LazyTensor]]:
    """Stops at a tensor, and where the path is too long to go on, whatever is there."""
    if isinstance(tree, LazyTensor) or len(path) > _LONGEST:
        if not isinstance(tree, ArraySlot) or tree.numbers:
            yield path, tree
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree).items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(cast("list[Any]", tree))
    for key, value in items:
        if isinstance(value, (LazyTensor, Mapping, list, tuple)):
            yield from _walked(value, f"{path}.{key}" if path else str(key))
