"""What a foreign file is made of: sets of weights, each with the role its library gives it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.header import Header
from polyak._foreign.dcp import Unread
from polyak._foreign.pickle_objects import Record
from polyak.errors import CheckpointError
from polyak.schedules import Decay, Profile

Role: TypeAlias = Literal["average", "raw", "optimizer", "unknown"]

# Of one model's modules. A tree that shares its branches can spell more than any memory holds, and a
# module that holds itself has no end.
_MOST, _DEEPEST = 1_000_000, 200
UPDATES = "updates"  # of a foreign average, kept in the header's state so that the way back has it
_WRAPPERS = ("module.", "_orig_mod.")  # put before every name by DataParallel, AveragedModel, torch.compile


@dataclass(frozen=True)
class Part:
    """One set of weights in a file.

    Args:
        name: what it is called here and in names of files made of it; unique in its file.
        role: whose weights they are; "unknown" when nothing says.
        path: the keys that lead to it in the file, joined by dots; "" for the file itself.
        tensors: by the model's own names, without the prefixes of wrappers.
        notes: what a reader should know.
        header: what polyak itself wrote of them; None of other libraries' weights.
    """

    name: str
    role: Role
    path: str
    tensors: Mapping[str, LazyTensor] = field(repr=False)
    notes: tuple[str, ...] = ()
    header: Header | None = field(default=None, repr=False)

    def is_called(self, wanted: str) -> bool:
        """Whether a user who names a set of weights means this one: by its name, its role or its key."""
        return wanted in (self.name, self.role, self.path)


@dataclass(frozen=True)
class Recognised:
    """What wrote a file, and what is in it.

    Args:
        library: "timm", "lightning", …; "polyak" for its own; "" when nothing says.
        parts: the sets of weights, averages first.
        step: training steps, as far as the file counts them.
        step_key: where in the file that number is; "" where a header of polyak's has it.
        updates: of the average, as far as the file counts them.
        decay: the schedule, where the file holds all of it.
        notes: what a reader should know.
    """

    library: str
    parts: tuple[Part, ...]
    step: int | None = None
    updates: int | None = None
    decay: Decay | None = None
    notes: tuple[str, ...] = ()
    step_key: str = ""

    def header_of(self, part: Part) -> Header | None:
        """As much as the file says of one of its sets; None when nothing says whether it is averaged."""
        if part.header is not None:
            return part.header
        if part.role == "raw":
            profile = None if self.step is None else Profile.raw(self.step)
            return Header("raw", self.step, None, profile, "raw", "")
        if part.role == "average":
            state = {"library": self.library} | ({} if self.updates is None else {UPDATES: self.updates})
            return Header(part.name, self.step, self.decay, None, "average", "", state=state)
        return None


def tree_of(weights: Checkpoint) -> Any:
    """Everything in a file; for formats that hold tensors only, these by name."""
    return weights.slots if weights.others is None else weights.others


def part(name: str, role: Role, path: str, tree: Any, *notes: str) -> Part:
    """A part of the tensors in a state dict or a pickled module."""
    return unwrapped(Part(name, role, path, tensors_in(tree), notes))


def tensors_in(tree: Any) -> dict[str, LazyTensor]:
    """The tensors of a state dict, or those that a pickled module's ``state_dict()`` would give.

    Raises:
        CheckpointError: a module holds itself, or more modules than any model has.
    """
    return dict(_named(tree, "", 0, iter(range(_MOST))))


def is_state_dict(tree: Any) -> bool:
    """Whether this is one flat mapping from names to tensors; a few plain values may lie among them."""
    if not isinstance(tree, Mapping):
        return False
    values = list(cast("Mapping[Any, Any]", tree).values())
    return any(isinstance(value, LazyTensor) for value in values) and not any(map(_nests, values))


def is_module(tree: Any) -> bool:
    """Whether this is a pickled ``torch.nn.Module``."""
    return isinstance(tree, Record) and {"_parameters", "_buffers", "_modules"} <= set(mapping(tree.state))


def is_weights(tree: Any) -> bool:
    """Whether this holds one model's tensors: a state dict or a module."""
    return is_state_dict(tree) or is_module(tree)


def unwrapped(one: Part) -> Part:
    """A part without the prefix that a wrapper put before all of its names."""
    for prefix in _WRAPPERS:
        if one.tensors and all(name.startswith(prefix) for name in one.tensors):
            tensors = {name.removeprefix(prefix): slot for name, slot in one.tensors.items()}
            note = f"the prefix {prefix!r} of a wrapper is left out"
            return unwrapped(replace(one, tensors=tensors, notes=(*one.notes, note)))
    return one


def below(tensors: Mapping[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): slot for name, slot in tensors.items() if name.startswith(prefix)}


def same_shapes(a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor]) -> bool:
    """Whether two sets hold tensors of the same names and shapes."""
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape for name in a)


def same_values(a: Mapping[str, LazyTensor], b: Mapping[str, LazyTensor]) -> bool:
    """Whether two sets of tensors are equal; the smallest are read first, up to one that differs."""
    return same_shapes(a, b) and all(
        np.array_equal(a[name].read(), b[name].read()) for name in sorted(a, key=lambda name: a[name].size)
    )


def at(tree: Any, path: str) -> Any:
    """What stands under keys joined by dots; a number counts in a list; None where there is nothing."""
    for key in path.split("."):
        if isinstance(tree, (list, tuple)):
            listed = cast("Sequence[Any]", tree)
            place = int(key) if key.lstrip("-").isdecimal() else len(listed)
            tree = listed[place] if -len(listed) <= place < len(listed) else None
        else:
            tree = mapping(tree).get(key)
    return tree


def mapping(tree: Any) -> Mapping[Any, Any]:
    """A dict of the file, or the attributes of an object; an empty one in place of anything else."""
    if isinstance(tree, Record):
        tree = tree.pairs or tree.state
    return cast("Mapping[Any, Any]", tree) if isinstance(tree, Mapping) else {}


def whole(value: Any) -> int | None:
    """A count in a file, plain or as a tensor of one element; None when it is none."""
    if isinstance(value, Unread):
        value = value.read()
    if isinstance(value, LazyTensor) and value.size == 1 and value.dtype.kind in "iuf":
        number = float(value.read().reshape(-1)[0])
        return int(number) if number.is_integer() and number >= 0 else None
    return value if type(value) is int and value >= 0 else None


def _named(tree: Any, prefix: str, depth: int, budget: Iterator[int]) -> Iterator[tuple[str, LazyTensor]]:
    if depth > _DEEPEST or next(budget, None) is None:
        raise CheckpointError(
            f"a model in this file nests its modules more than {_DEEPEST} deep, or has more than {_MOST:,} "
            "of them: it is malformed."
        )
    if not isinstance(tree, Record):
        yield from _slots(mapping(tree).items(), prefix)
        return
    state = mapping(tree.state)
    hidden = _names(state.get("_non_persistent_buffers_set"))
    buffers = mapping(state.get("_buffers"))
    yield from _slots(mapping(state.get("_parameters")).items(), prefix)
    yield from _slots(((name, slot) for name, slot in buffers.items() if name not in hidden), prefix)
    for name, child in mapping(state.get("_modules")).items():
        if isinstance(child, Record):
            yield from _named(child, f"{prefix}{name}.", depth + 1, budget)


def _slots(items: Iterable[tuple[str, Any]], prefix: str) -> Iterator[tuple[str, LazyTensor]]:
    for name, value in items:
        if isinstance(value, LazyTensor):
            yield f"{prefix}{name}", value


def _nests(value: Any) -> bool:
    return isinstance(value, Record) or (
        isinstance(value, (Mapping, list, tuple)) and len(cast("list[Any]", value)) > 0
    )


def _names(values: Any) -> frozenset[str]:
    return (
        frozenset(cast("Iterable[str]", values))
        if isinstance(values, (set, frozenset, list))
        else frozenset()
    )
