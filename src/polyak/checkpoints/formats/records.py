"""What a pickle builds here, and the bounds of it.

A few hundred bytes of pickle can build what has no end: lists that hold each other twice, sixty times over,
print as 2⁶⁰ words, and a tuple a million deep overflows the stack of whoever hashes it. What passes here can
be walked, hashed and printed by everyone after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from polyak.checkpoints.source import Source
from polyak.errors import CheckpointError

# Bytes of a pickle that are not payload: a model of 100,000 tensors takes a fifth of it. One byte can make
# an object of 64.
MOST = 1 << 26
_UNFOLDED = 1 << 24  # values of a tree when its shared branches are written out
_LETTERS = 16  # of a text, which count as one value
_DEEPEST = 100
_IN_KEY = 100  # values that a tuple, taken as a key, is made of
_COUNTS_BELOW = 1 << 60  # beyond, numbers can be chosen so that all have the same hash


@dataclass(eq=False)
class Record:
    """An object whose class is not known here: what the pickle says of it, and no more.

    Args:
        module: where its class is defined.
        name: of its class.
        args: what it was made with.
        state: usually the dict of its attributes; None before or without any.
        items: of a subclass of list or set.
        pairs: of a subclass of dict.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list[Any])
    pairs: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def append(self, item: Any) -> None:
        """An item of a list."""
        self.items.append(item)

    def extend(self, items: list[Any]) -> None:
        """Items of a list."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """An item of a set."""
        self.items.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
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
    """Bytes that are still in the file.

    Args:
        source: the file.
        offset: of the first byte.
        size: in the file.
        text: they stand there as UTF-8 of the Latin-1 characters that are meant, as pickles of protocol 2
            spell them; ``size`` is then at most twice their number.
    """

    source: Source = field(repr=False)
    offset: int
    size: int
    text: bool = False

    def read(self) -> bytes:
        """The bytes themselves.

        Raises:
            CheckpointError: the file cannot be read, or they are not what they are said to be.
        """
        data = self.source.read(self.offset, self.size)
        if not self.text:
            return data
        try:
            return data.decode().encode("latin1")
        except UnicodeError as error:
            raise CheckpointError(f"{self.source.name} is damaged: {error}.") from error


class Built:
    """A value of ours that a pickle completes with a state."""

    def build(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


def hashable(key: Any) -> Any:
    """The same value, fit to be a key or a member of a set.

    Raises:
        CheckpointError: hashing it, or many like it, could take for ever or overflow the stack.
    """
    parts, seen = [key], 0
    while parts:
        part = parts.pop()
        if type(part) is int and abs(part) >= _COUNTS_BELOW:
            raise CheckpointError("it is malformed: a key is a number beyond 2⁶⁰")
        if isinstance(part, tuple):
            within = cast("tuple[Any, ...]", part)
            seen += len(within)
            if seen > _IN_KEY:
                raise CheckpointError(f"it is malformed: a key is made of more than {_IN_KEY} values")
            parts += within
    return key


def bounded(tree: Any) -> Any:
    """The same tree, which is finite: only records may hold themselves.

    Raises:
        CheckpointError: it nests too deeply, or unfolds to more than any model's structure.
    """
    records: list[Record] = []
    measured: dict[int, tuple[int, int]] = {}
    _measure(tree, 0, measured, records)
    seen: set[int] = set()
    while records:
        record = records.pop()
        if id(record) not in seen:
            seen.add(id(record))
            for part in (record.args, record.state, record.items, record.pairs):
                _measure(part, 0, measured, records)
    return tree


def _measure(
    value: Any, depth: int, measured: dict[int, tuple[int, int]], records: list[Record]
) -> tuple[int, int]:
    """Size when unfolded, and height; each container is counted once, as long as the tree keeps it alive."""
    if isinstance(value, Record):
        records.append(value)
    parts = _parts(value)
    if parts is None:
        return 1 + (len(value) // _LETTERS if isinstance(value, (str, bytes)) else 0), 0
    size, height = measured.get(id(value), (0, 0))
    if size == 0:
        _allow(1, depth)
        size = 1
        for part in parts:
            more, above = _measure(part, depth + 1, measured, records)
            size, height = size + more, max(height, above + 1)
            _allow(size, depth)
        measured[id(value)] = size, height
    _allow(size, depth + height)
    return size, height


def _parts(value: Any) -> Iterable[Any] | None:
    if isinstance(value, dict):
        return (part for pair in cast("dict[Any, Any]", value).items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return cast("Iterable[Any]", value)
    return None


def _allow(size: int, depth: int) -> None:
    if size > _UNFOLDED or depth > _DEEPEST:
        raise CheckpointError(
            f"it is malformed: it nests more than {_DEEPEST} deep or unfolds to over {_UNFOLDED:,} values"
        )
