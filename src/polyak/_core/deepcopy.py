"""Copies of a module's attributes, for a clone that must not compute with the module's own weights.

``copy.deepcopy`` fails as a whole on the first object that cannot be copied (a lock, a process group), and it
copies neither functions nor weak references, although a closure over ``self`` reaches the original as surely
as an attribute does. So containers, functions, methods and references are copied piece by piece here;
everything else is deep-copied, or shared where that fails. Finally all that is reachable from the clone is
checked: if the original is, the copy is refused.
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

# Objects that compute nothing, or belong to the whole program: loggers keep records, records frames.
_ELSEWHERE = (type, ModuleType, CodeType, FrameType, TracebackType, Logger, str, bytes, int, float)


class Copier:
    """Copies attributes for one clone.

    Args:
        memo: the clone of each module and tensor of the original, by the ``id`` of the original.
        leaf: the framework's tensor class.
        copied: copies a tensor that is neither parameter nor buffer.
    """

    def __init__(self, memo: dict[int, Any], leaf: type, copied: Callable[[Any], Any]) -> None:
        self.memo, self._leaf, self._tensor = memo, leaf, copied
        self.tensors: list[tuple[Any, Any]] = []  # (copy, original) of tensors
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
        self._clones = frozenset(map(id, memo.values()))

    def fill(self, clone: object, module: object, attributes: Iterable[str]) -> None:
        """Copy these attributes and those in ``__slots__``.

        Raises:
            PlanError: one of them, which is named, reaches the original.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as errors, warnings of third-party copying would make it fail
            for key in attributes:
                clone.__dict__[key] = self._attribute(module, key, module.__dict__[key])
            for key, slot in _slots(type(module)):
                if hasattr(module, key):
                    slot.__set__(clone, self._attribute(module, key, slot.__get__(module)))

    def _attribute(self, module: object, key: str, value: object) -> object:
        clone = self.copy(value)
        if not self.leads(clone):
            return clone
        instead = _left_out(module, key, value)  # as Lightning's modules drop their trainer
        if instead is not value and not self.leads(instead):
            return instead
        raise PlanError(
            f"{type(module).__name__}.{key} ({type(value).__name__}) leads to the live weights, also as a "
            "copy: the average cannot have a module of its own. Evaluate with average_parameters() instead."
        )

    def copy(self, value: Any) -> Any:
        """A copy that refers to clones instead of originals wherever that is possible."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, self._leaf):
            clone = self._remember(value, self._tensor(value))
            if value.is_leaf:  # otherwise it is recomputed before it is used
                self.tensors.append((clone, value))
            return clone
        take_apart = self._parts.get(cast("type[Any]", type(value)), self._deep_copy)
        return take_apart(value)

    def leads(self, value: object) -> bool:
        """Whether the original is reachable from this value by attribute, closure or reference."""
        todo, seen = [value], set[int]()
        while todo:
            one = todo.pop()
            if id(one) in self._live:
                return True
            if id(one) in seen or id(one) in self._clones or isinstance(one, (self._leaf, *_ELSEWHERE)):
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
        except Exception:  # third-party attributes may raise anything
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
        """A copy with a new closure if the function reaches the original; shared otherwise."""
        if not self.leads(value):
            return value
        cells = value.__closure__ or ()
        closure = tuple([self.memo.setdefault(id(cell), CellType()) for cell in cells])
        clone = FunctionType(value.__code__, value.__globals__, value.__name__, None, closure)
        self._remember(value, clone)  # first, since its closure may contain it
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
    except ValueError:  # the name was never bound
        return _NOTHING


def _slots(cls: type) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if "__slots__" in vars(base):
            yield from [
                (key, slot) for key, slot in vars(base).items() if isinstance(slot, MemberDescriptorType)
            ]


def _left_out(module: object, key: str, value: object) -> object:
    """The attribute as the class's own ``__getstate__`` gives it; the value itself without one."""
    if getattr(type(module), "__getstate__", None) is getattr(object, "__getstate__", None):
        return value
    state: object = cast(Any, module).__getstate__()
    return cast("dict[str, object]", state).get(key) if isinstance(state, dict) else value


class _Scratch(dict[int, Any]):
    """A memo on top of another, dropped if the copy fails."""

    def __init__(self, known: dict[int, Any]) -> None:
        super().__init__()
        self._known = known

    def get(self, key: int, default: Any = None) -> Any:
        return super().get(key, self._known.get(key, default))

    def __missing__(self, key: int) -> Any:
        return self._known[key]
