"""A node of a file's tree, its path of keys, and the tensors below it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.source import beside, exists, open_source
from polyak._foreign.dcp import Unread
from polyak._foreign.pickle_objects import Record
from polyak._type_guards import is_collection, is_mapping, is_sequence
from polyak.errors import CheckpointError

# Limits on one model's modules: a tree with shared branches can unfold to more than any memory, and a module
# that contains itself has no end.
_MOST, _DEEPEST = 1_000_000, 200
_LIMIT = 1 << 24  # bytes of a JSON file; configs take a few thousand, a log of a million steps some more


@dataclass(frozen=True)
class Node:
    """A value in a file and its path of keys."""

    tree: object = field(repr=False)  # the value; None where there is nothing
    path: str = ""  # its keys, joined by dots; "" for the whole file
    file: Checkpoint = field(default=Checkpoint("", "", {}), repr=False)  # the checkpoint it is in

    @classmethod
    def root(cls, file: Checkpoint) -> Node:
        """All of a file; for formats that hold tensors only, these by name."""
        return cls(file.tensors if file.others is None else file.others, "", file)

    @property
    def key(self) -> str:
        """The last key of the path."""
        return self.path.rpartition(".")[2]

    @property
    def keys(self) -> Mapping[object, object]:
        """The entries of a dict, or the attributes of an object; empty for anything else."""
        return mapping(self.tree)

    @property
    def listed(self) -> Sequence[object]:
        """The values of a list; empty for anything else."""
        return self.tree if is_sequence(self.tree) else ()

    @property
    def items(self) -> list[Node]:
        """The values of a list."""
        return [self._child(str(i), value) for i, value in enumerate(self.listed)]

    @property
    def children(self) -> Iterator[Node]:
        """The values of a dict or of an object's attributes."""
        for key, value in self.keys.items():
            yield self._child(str(key), value)

    @property
    def count(self) -> int | None:
        """The number of steps or updates here; None if this is not a number."""
        return count_in(self.tree)

    @property
    def tensors(self) -> dict[str, LazyTensor]:
        """The tensors that are values of a dict, by key."""
        return tensor_values(self.tree)

    @property
    def is_weights(self) -> bool:
        """Whether one model's tensors are here: a state dict or a module."""
        return is_weights(self.tree)

    def at(self, place: str) -> Node:
        """The node at keys joined by dots: a number counts in a list, ``*`` is the first key that leads on.

        Examples:
            >>> tree = Node({"loops": {"a": {}, "b": {"step": 3}}, "sizes": [4, 5]})
            >>> tree.at("loops.*.step").path, tree.at("sizes.-1").count, tree.at("x.y").tree
            ('loops.b.step', 5, None)
        """
        key, _, rest = place.partition(".")
        if key == "*":
            return next((end for one in self.children if (end := one.at(rest)).tree is not None), _NOTHING)
        child = self._child(key, self._value(key))
        return child.at(rest) if rest else child

    def outer(self, place: str) -> tuple[Node, str]:
        """The parent node of a place, and its last key."""
        outer, _, key = place.rpartition(".")
        return (self.at(outer) if outer else self), key

    def has(self, place: str) -> bool:
        """Whether there is a value at a place, even None; for ``name.``, whether a tensor has this prefix."""
        node, key = self.outer(place.removesuffix("."))
        if place.endswith("."):
            return any(name.startswith(f"{key}.") for name in node.tensors)
        return key in node.keys

    @property
    def file_name(self) -> str:
        """The file's name, without its folder."""
        return self.file.where.replace("\\", "/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The file's name, without its ending."""
        return self.file_name.rpartition(".")[0]

    def has_beside(self, name: str) -> bool:
        """Whether a file of this name is in the folder of this one."""
        return exists(beside(self.file.where, name))

    def _child(self, key: str, value: object) -> Node:
        return replace(self, tree=value, path=f"{self.path}.{key}" if self.path else key)

    def _value(self, key: str) -> object:
        listed = self.listed
        if not listed:
            return self.keys.get(key)
        index = int(key) if key.lstrip("-").isdecimal() else len(listed)
        return listed[index] if -len(listed) <= index < len(listed) else None


_NOTHING = Node(None)


def mapping(tree: object) -> Mapping[object, object]:
    """A dict of the file, or the attributes of an object; empty for anything else."""
    if isinstance(tree, Record):
        tree = tree.pairs or tree.state
    return tree if is_mapping(tree) else {}


def count_in(value: object) -> int | None:
    """A count in a file, plain or as a tensor of one element; None for anything else."""
    if isinstance(value, Unread):
        value = value.read()
    if isinstance(value, LazyTensor) and value.size == 1 and value.dtype.kind in "iuf":
        number = float(value.read().reshape(-1)[0])
        return int(number) if number.is_integer() and number >= 0 else None
    return value if type(value) is int and value >= 0 else None


def tensor_values(tree: object) -> dict[str, LazyTensor]:
    """The tensors that are values of a dict, by key."""
    return {str(name): tensor for name, tensor in mapping(tree).items() if isinstance(tensor, LazyTensor)}


def tensors_in(tree: object) -> dict[str, LazyTensor]:
    """The tensors of a state dict, or those that a pickled module's ``state_dict()`` would give."""
    return dict(_named(tree, "", 0, iter(range(_MOST)))) if isinstance(tree, Record) else tensor_values(tree)


def is_state_dict(tree: object) -> TypeGuard[Mapping[object, object]]:
    """Whether this is a flat mapping from names to tensors, perhaps with a few plain values."""
    if not is_mapping(tree):
        return False
    values = tree.values()
    return any(isinstance(value, LazyTensor) for value in values) and not any(map(_nests, values))


def is_module(tree: object) -> bool:
    """Whether this is a pickled ``torch.nn.Module``."""
    return isinstance(tree, Record) and {"_parameters", "_buffers", "_modules"} <= set(mapping(tree.state))


def is_weights(tree: object) -> bool:
    """Whether this holds one model's tensors: a state dict or a module."""
    return is_state_dict(tree) or is_module(tree)


def json_beside(where: str, name: str) -> Mapping[object, object]:
    """The JSON object in a file of the same folder; empty if it is missing or huge."""
    path = beside(where, name)
    if not exists(path):
        return {}
    with open_source(path) as source:
        if source.size > _LIMIT:
            return {}
        text = source.read(0, source.size)
    try:
        return mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _named(module: Record, prefix: str, depth: int, left: Iterator[int]) -> Iterator[tuple[str, LazyTensor]]:
    if depth > _DEEPEST or next(left, None) is None:
        raise CheckpointError(
            f"a model in this file nests its modules more than {_DEEPEST} deep, or has more than {_MOST:,} "
            "of them: it is malformed."
        )
    state = mapping(module.state)
    hidden = state.get("_non_persistent_buffers_set")
    unsaved = hidden if is_collection(hidden) else ()
    buffers = {n: s for n, s in tensor_values(state.get("_buffers")).items() if n not in unsaved}
    for name, tensor in (*tensor_values(state.get("_parameters")).items(), *buffers.items()):
        yield f"{prefix}{name}", tensor
    for name, child in mapping(state.get("_modules")).items():
        if isinstance(child, Record):
            yield from _named(child, f"{prefix}{name}.", depth + 1, left)


def _nests(value: object) -> bool:
    return isinstance(value, Record) or ((is_mapping(value) or is_sequence(value)) and len(value) > 0)
