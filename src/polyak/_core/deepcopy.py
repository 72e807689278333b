"""Copies of what hangs on a module, for a twin of it that must not compute with the module's own weights.

``copy.deepcopy`` fails as a whole on the first part that refuses (a lock, a process group), and it copies
neither functions nor weak references, though a closure over ``self`` leads back to the original as surely as
an attribute does. So containers, functions, methods and references are taken apart here; what is left is
deep-copied, and shared where it refuses. At last everything that hangs on the twin is walked through: where
that comes upon the original all the same, the copy is refused.
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from logging import Logger
from types import (
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import Any, cast
from weakref import ref

from polyak.errors import PlanError

# What computes nothing, or belongs to the whole program: loggers keep records, records frames.
_ELSEWHERE = (type, ModuleType, CodeType, FrameType, TracebackType, Logger, str, bytes, int, float)


class Copier:
    """Copies for one twin.

    Args:
        memo: the twin of each module and tensor of the original, by the ``id`` of that.
        leaf: the framework's tensors, which lead nowhere.
        copied: a copy of a tensor that is none of the module's own.
    """

    def __init__(self, memo: dict[int, Any], leaf: type, copied: Callable[[Any], Any]) -> None:
        self.memo, self._leaf, self._tensor = memo, leaf, copied
        self.tensors: list[tuple[Any, Any]] = []  # copies of tensors, each with what it is of
        self._parts: dict[type, Callable[[Any], Any]] = {
            list: self._list,
            deque: self._list,
            dict: self._dict,
            OrderedDict: self._dict,
            tuple: self._frozen,
            set: self._frozen,
            frozenset: self._frozen,
            partial: self._partial,
            MethodType: self._method,
            FunctionType: self._function,
            ref: self._reference,
        }
        self._live = frozenset(key for key, clone in memo.items() if id(clone) != key)
        self._twins = frozenset(map(id, memo.values()))

    def fill(self, clone: object, module: object, attributes: Iterable[str]) -> None:
        """Copy these attributes, and what ``__slots__`` hold.

        Raises:
            PlanError: one of them leads to the original, which is named.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how others copy their things; as errors they would refuse to
            for key in attributes:
                clone.__dict__[key] = self._attribute(module, key, module.__dict__[key])
            for key, slot in _slots(type(module)):
                if hasattr(module, key):
                    slot.__set__(clone, self._attribute(module, key, slot.__get__(module)))

    def _attribute(self, module: object, key: str, value: object) -> object:
        clone = self.copy(value)
        if not self.leads(clone):
            return clone
        instead = _left_out(module, key, value)  # Lightning's modules drop their trainer so
        if instead is not value and not self.leads(instead):
            return instead
        raise PlanError(
            f"{type(module).__name__}.{key} ({type(value).__name__}) leads to the live weights, also as a "
            "copy: the average cannot have a module of its own. Evaluate with average_parameters() instead."
        )

    def copy(self, value: Any) -> Any:
        """A copy that leads to twins instead of originals wherever that can be done."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, self._leaf):
            clone = self._remember(value, self._tensor(value))
            if value.is_leaf:  # else it is computed again before it is used
                self.tensors.append((clone, value))
            return clone
        take_apart = self._parts.get(cast("type[Any]", type(value)), self._deep_copy)
        return take_apart(value)

    def leads(self, value: object) -> bool:
        """Whether something that hangs on this is the original's, by attribute, closure or reference."""
        todo, seen = [value], set[int]()
        while todo:
            one = todo.pop()
            if id(one) in self._live:
                return True
            if id(one) in seen or id(one) in self._twins or isinstance(one, (self._leaf, *_ELSEWHERE)):
                continue
            seen.add(id(one))
            todo += self._reached(one)
        return False

    def _reached(self, one: object) -> Iterable[object]:
        if isinstance(one, ref):
            return [cast("ref[Any]", one)()]
        if not isinstance(one, FunctionType):
            return gc.get_referents(one)
        named = [one.__globals__.get(name) for name in one.__code__.co_names]
        lives = [value for value in named if id(value) in self._live]
        return [
            *map(_content, one.__closure__ or ()),
            one.__defaults__,
            one.__kwdefaults__,
            one.__dict__,
            *lives,
        ]

    def _remember(self, value: object, clone: Any) -> Any:
        self.memo[id(value)] = clone
        return clone

    def _deep_copy(self, value: Any) -> Any:
        scratch = _Scratch(self.memo)
        try:
            clone = copy.deepcopy(value, scratch)
        except Exception:  # third-party attributes refuse in every way there is
            return value
        self.memo.update(scratch)
        return clone

    def _list(self, value: Any) -> Any:
        clone = self._remember(value, type(value)())
        clone.extend(map(self.copy, value))
        return clone

    def _dict(self, value: Any) -> Any:
        clone = self._remember(value, type(value)())
        for key, each in value.items():
            clone[self.copy(key)] = self.copy(each)
        return clone

    def _frozen(self, value: Any) -> Any:
        return self._remember(value, type(value)(map(self.copy, value)))

    def _method(self, value: MethodType) -> Any:
        return self._remember(value, MethodType(self.copy(value.__func__), self.copy(value.__self__)))

    def _partial(self, value: partial[Any]) -> Any:
        keywords = {key: self.copy(each) for key, each in value.keywords.items()}
        clone = self._remember(value, partial(self.copy(value.func), *map(self.copy, value.args), **keywords))
        clone.__dict__.update(self._dict(value.__dict__))
        return clone

    def _reference(self, value: ref[Any]) -> Any:
        clone = self.memo.get(id(value()))
        return value if clone is None else self._remember(value, ref(clone))

    def _function(self, value: FunctionType) -> Any:
        """With a closure of its own where the closure leads to the original; shared otherwise."""
        if not self.leads(value):
            return value
        cells = value.__closure__ or ()
        closure = tuple([self.memo.setdefault(id(cell), CellType()) for cell in cells])
        clone = FunctionType(value.__code__, value.__globals__, value.__name__, None, closure)
        self._remember(value, clone)  # before what may hold it
        for cell, mine in zip(cells, closure, strict=True):
            content = _content(cell)
            if content is not _NOTHING:
                mine.cell_contents = self.copy(content)
        clone.__defaults__ = self.copy(value.__defaults__)
        clone.__kwdefaults__ = self.copy(value.__kwdefaults__)
        clone.__dict__.update(self._dict(value.__dict__))
        for name in ("__qualname__", "__module__", "__doc__"):
            setattr(clone, name, getattr(value, name))
        return clone


_NOTHING = object()


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that was never bound
        return _NOTHING


def _slots(cls: type) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if "__slots__" in vars(base):
            yield from [
                (key, slot) for key, slot in vars(base).items() if isinstance(slot, MemberDescriptorType)
            ]


def _left_out(module: object, key: str, value: object) -> object:
    """What the class's own ``__getstate__`` puts in the place of an attribute; the value if it has none."""
    if getattr(type(module), "__getstate__", None) is getattr(object, "__getstate__", None):
        return value
    state: object = cast(Any, module).__getstate__()
    return cast("dict[str, object]", state).get(key) if isinstance(state, dict) else value


class _Scratch(dict[int, Any]):
    """A memo on top of another, so that what a failed copy left behind can be dropped."""

    def __init__(self, known: dict[int, Any]) -> None:
        super().__init__()
        self._known = known

    def get(self, key: int, default: Any = None) -> Any:
        return super().get(key, self._known.get(key, default))

    def __missing__(self, key: int) -> Any:
        return self._known[key]
