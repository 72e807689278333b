"""Objects built from pickles, their limits, and replacements of the standard library's names.

A few hundred bytes of pickle can build unbounded objects: lists that contain each other twice, sixty times
over, print as 2⁶⁰ words, and hashing a tuple a million deep overflows the stack. Objects that pass the limits
can be safely walked, hashed and printed.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias, TypeGuard, TypeVar

from polyak._files.source import Source
from polyak._type_guards import is_collection, is_dict
from polyak.errors import CheckpointError

T = TypeVar("T")
Maker: TypeAlias = Callable[..., Any]  # builds what a call of a name in a pickle would
Makers: TypeAlias = Mapping[tuple[str, str], Any]  # by module and name: a maker, or a ``Global`` for a class

# Bytes of a pickle that are not payload: a model of 100,000 tensors takes a fifth of it. One byte can make
# an object of 64.
MOST = 1 << 26
_STEPS, _PER_STEP = 1 << 18, 8  # steps a pickle may take, and bytes of its file for each further one
_ODD_KEYS = 1 << 12  # keys that are neither text nor numbers
_LETTERS = 16  # of a text, which count as one value
_DEEPEST = 100
_IN_KEY = 100  # values that a tuple, taken as a key, is made of
_COUNTS_BELOW = 1 << 60  # beyond, numbers can be chosen so that all have the same hash


class Budget:
    """A limit on the work for one file, in steps of about a microsecond: an opcode or a visited value.

    A tensor takes some sixty opcodes, and at least 450 bytes of a file, so valid files stay below it.
    """

    def __init__(self, size: int) -> None:
        self.most = self.left = _STEPS + size // _PER_STEP
        self._odd_keys = 0

    def work(self, steps: int) -> None:
        """Use some of it."""
        self.left -= steps
        if self.left < 0:
            raise CheckpointError(
                f"it is malformed: reading it takes more than the {self.most:,} steps that its size allows"
            )

    def key(self, key: T) -> T:
        """The same value, fit to be a key or a member of a set: hashing many like it takes no longer."""
        if type(key) is not str:
            self.work(_checked(key))
            self._odd_keys += type(key) not in _SAFE_KEYS
            if self._odd_keys > _ODD_KEYS:  # numbers can be chosen so that all tuples of them have one hash
                raise CheckpointError(
                    f"it is malformed: more than {_ODD_KEYS:,} keys are no text and no number"
                )
        return key


_SAFE_KEYS = (bytes, int, float, bool, type(None))


@dataclass(eq=False)
class Record:
    """An object of an unknown class: only its description in the pickle."""

    module: str  # where its class is defined
    name: str  # of its class
    args: tuple[object, ...] = ()  # what it was made with
    state: Any = None  # usually the dict of its attributes; None before or without any
    items: list[object] = field(default_factory=list[object])  # of a subclass of list or set
    pairs: dict[object, object] = field(default_factory=dict[object, object])  # of a subclass of dict

    def append(self, item: object) -> None:
        """One more item of a list or set."""
        self.items.append(item)

    add = append

    def extend(self, items: list[object]) -> None:
        """More items of a list."""
        self.items.extend(items)

    def __setitem__(self, key: object, value: object) -> None:
        self.pairs[key] = value

    def __repr__(self) -> str:  # what it holds may hold it
        return f"<{self.module}.{self.name}>"


@dataclass(frozen=True)
class Global:
    """The name of a class or function in a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Payload:
    """Bytes that are still in the file."""

    source: Source = field(repr=False)
    offset: int  # of the first byte
    size: int  # in the file
    # protocol 2 stores bytes as UTF-8 text of Latin-1 characters; ``size`` is then at most twice their number
    text: bool = False

    def read(self) -> bytes:
        """The bytes themselves."""
        data = self.source.read(self.offset, self.size)
        if not self.text:
            return data
        try:
            return data.decode().encode("latin1")
        except UnicodeError as error:
            raise CheckpointError(f"{self.source.name} is damaged: {error}.") from error


def is_tuple(value: object) -> TypeGuard[tuple[object, ...]]:
    """``isinstance`` for a value of unknown content."""
    return isinstance(value, tuple)


class Built(ABC):
    """A value that a pickle completes with a state."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take the state."""


def _checked(key: object) -> int:
    """Counts the values in a key."""
    parts = [key]
    seen = 0
    while parts:
        part = parts.pop()
        if type(part) is int and abs(part) >= _COUNTS_BELOW:
            raise CheckpointError("it is malformed: a key is a number beyond 2⁶⁰")
        if is_collection(part):
            seen += len(part)
            if seen > _IN_KEY:
                raise CheckpointError(f"it is malformed: a key is made of more than {_IN_KEY} values")
            parts += part
    return seen


def bounded(tree: T, most: int) -> T:
    """The same tree, after checking its size with shared branches unfolded; records may form cycles."""
    measure = _Measure(most)
    measure.of(tree, 0)
    seen: set[int] = set()
    while measure.records:
        record = measure.records.pop()
        if id(record) not in seen:
            seen.add(id(record))
            for part in (record.args, record.state, record.items, record.pairs):
                measure.of(part, 0)
    return tree


class _Measure:
    """Sizes when unfolded, and heights; each container is looked into once, while the tree keeps it alive."""

    def __init__(self, most: int) -> None:
        self.records: list[Record] = []
        self._most = most
        self._known: dict[int, tuple[int, int]] = {}

    def of(self, value: object, depth: int) -> tuple[int, int]:
        """Of one value."""
        if isinstance(value, Record):
            self.records.append(value)
        parts = _parts(value)
        if parts is None:
            return 1 + (len(value) // _LETTERS if isinstance(value, (str, bytes)) else 0), 0
        size, height = self._known.get(id(value), (0, 0))
        if size == 0:
            self._allow(1, depth)
            size = 1
            for part in parts:
                more, above = self.of(part, depth + 1)
                size, height = size + more, max(height, above + 1)
                self._allow(size, depth)
            self._known[id(value)] = size, height
        self._allow(size, depth + height)
        return size, height

    def _allow(self, size: int, depth: int) -> None:
        if size > self._most or depth > _DEEPEST:
            raise CheckpointError(
                f"it is malformed: it nests over {_DEEPEST} deep or unfolds to over {self._most:,} values"
            )


def _parts(value: object) -> Iterable[object] | None:
    if is_dict(value):
        return chain.from_iterable(value.items())
    return value if is_collection(value) else None


def _new(cls: Any, *args: Any) -> Any:
    """``cls.__new__(cls, *args)``: a record of an unknown class."""
    return Record(cls.module, cls.name, args) if isinstance(cls, (Global, Record)) else cls(*args)


def _reconstructed(cls: Any, base: object, state: Any) -> Any:
    """An object of protocol 0 or 1, whose state is that of its built-in base class."""
    return _new(cls) if state is None or isinstance(cls, (Global, Record)) else cls(state)


def encoded(text: str | Payload, encoding: str = "latin1") -> bytes | Payload:
    """Bytes that protocol 2 spells as Latin-1 text; long ones are left in the file."""
    latin = encoding in ("latin1", "latin-1")
    if isinstance(text, Payload) and latin:
        return text
    if isinstance(text, Payload) or not (latin or encoding in ("utf-8", "ascii")):
        raise pickle.UnpicklingError("bytes are spelled in an encoding that Python does not use for it")
    return text.encode(encoding)


def hashing(key: Maker) -> Makers:
    """Replacements of the standard library's containers with hashed items."""

    def ordered(items: Any = ()) -> OrderedDict[object, object]:
        pairs: Iterable[Any] = items.items() if is_dict(items) else items
        return OrderedDict((key(name), value) for name, value in pairs)

    def members(items: Iterable[object] = ()) -> set[object]:
        return set(map(key, items))

    def frozen(items: Iterable[object] = ()) -> frozenset[object]:
        return frozenset(map(key, items))

    made: dict[str, Maker] = {"set": members, "frozenset": frozen, "dict": ordered}
    return {
        ("collections", "OrderedDict"): ordered,
        ("collections", "Counter"): ordered,
        **{(module, name): make for module in _BUILTINS for name, make in made.items()},
    }


def recorded(module: str, name: str) -> Maker:
    """Makes a record of a call, which is never made."""
    return lambda *args: Record(module, name, args)


def same(value: Any = b"", *_: object) -> Any:
    """The first argument, for functions that wrap, move or copy it."""
    return value


def _list(items: Iterable[object] = (), *_: object) -> list[object]:
    return list(items)


def _no_default(*_: object) -> OrderedDict[object, object]:
    return OrderedDict()


def _path(*parts: str) -> str:
    return "/".join(parts)


_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")
_BUILTINS = ("builtins", "__builtin__")
_TIMES = ("datetime", "date", "time", "timedelta", "timezone")

# Replacements of the standard library's data types, whose own code is not run.
PLAIN: Makers = {
    ("collections", "defaultdict"): _no_default,
    ("collections", "deque"): _list,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("copyreg", "__newobj__"): _new,
    ("_codecs", "encode"): encoded,
    ("argparse", "Namespace"): recorded("argparse", "Namespace"),
    **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{("datetime", name): recorded("datetime", name) for name in _TIMES},
    **{
        (module, name): make
        for module in _BUILTINS
        for name, make in {
            "complex": complex,
            "slice": recorded("builtins", "slice"),
            "bytearray": same,
            "bytes": same,
            "list": _list,
            "object": Global("builtins", "object"),
        }.items()
    },
}
