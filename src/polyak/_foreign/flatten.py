"""The tensors of an unpickled tree, by names joined from the keys of their paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.source import Source
from polyak._foreign.numpy_pickle import PickledArray, is_numeric
from polyak._foreign.pickle_objects import MOST
from polyak._type_guards import is_mapping, is_sequence
from polyak.errors import CheckpointError

_LONGEST = 1 << 12  # letters of a name
# Expanded and tied tensors repeat the bytes of a file: 6 kB could claim terabytes.
_REPEATED, EXPANDED = 8, 1 << 28


def checkpoint_of(source: Source, format: str, tree: object) -> Checkpoint:
    """A checkpoint of an unpickled tree."""
    tensors = flattened(source.name, tree)
    check_size(source.name, tensors, source.size)
    return Checkpoint(source.name, format, tensors, others=tree, sources=(source,))


def flattened(where: str, tree: object) -> dict[str, LazyTensor]:
    """Every tensor of nested dicts and lists by its path, joined with dots; pickled objects are left out."""
    tensors: dict[str, LazyTensor] = {}
    letters = 0
    too_long = CheckpointError(f"{where} is malformed: its names are longer than those of any model.")
    for path, tensor in _walk(tree, "", too_long):
        letters += len(path)
        if letters > MOST:
            raise too_long
        if path in tensors:
            raise CheckpointError(f"{where} holds two tensors whose keys make up one name: {path!r}.")
        tensors[path] = tensor
    return tensors


def check_size(where: str, tensors: Mapping[str, LazyTensor], size: int) -> None:
    """Refuse tensors whose total size is much larger than a file of this size can contain."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > _REPEATED * size + EXPANDED:
        raise CheckpointError(
            f"{where} is malformed: its tensors take {total:,} bytes, too many for a file of {size:,}."
        )


def _walk(tree: object, path: str, too_long: CheckpointError) -> Iterator[tuple[str, LazyTensor]]:
    if len(path) > _LONGEST:  # before going deeper, where a million paths could be as long
        raise too_long
    items: Iterable[tuple[object, object]] = ()
    if isinstance(tree, LazyTensor):
        if not isinstance(tree, PickledArray) or is_numeric(tree.dtype):
            yield path, tree
    elif is_mapping(tree):
        items = tree.items()
    elif is_sequence(tree):
        items = enumerate(tree)
    for key, value in items:
        if isinstance(value, LazyTensor) or is_mapping(value) or is_sequence(value):
            yield from _walk(value, f"{path}.{key}" if path else str(key), too_long)
