"""What a pickle builds here, and the bounds of it.

A few hundred bytes of pickle can build what has no end: lists that hold each other twice, sixty times over,
print as 2⁶⁰ words, and a tuple a million deep overflows the stack of whoever hashes it. What passes here can
be walked, hashed and printed by everyone after.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

from polyak._files.source import Source
from polyak.errors import CheckpointError

# Bytes of a pickle that are not payload: a model of 100,000 tensors takes a fifth of it. One byte can make
# an object of 64.
MOST = 1 << 26
_STEPS, _PER_STEP = 1 << 18, 8  # a pickle may take so many steps, and one more for so many bytes of its file
_ODD_KEYS = 1 << 12  # keys that are neither text nor numbers
_LETTERS = 16  # of a text, which count as one value
_DEEPEST = 100
_IN_KEY = 100  # values that a tuple, taken as a key, is made of
_COUNTS_BELOW = 1 << 60  # beyond, numbers can be chosen so that all have the same hash


class Budget:
    """The work that may go into one file: steps of about a microsecond, an opcode or a value looked at.

    A tensor takes some sixty opcodes, and 450 bytes of a file at least: files of torch.save take less.
    """

    def __init__(self, size: int) -> None:
        self.most = self.left = _STEPS + size // _PER_STEP
        self._odd_keys = 0

    def work(self, steps: int) -> None:
        """Use some of it up.

        Raises:
            CheckpointError: nothing is left.
        """
        self.left -= steps
        if self.left < 0:
            raise CheckpointError(
                f"it is malformed: reading it takes more than the {self.most:,} steps that its size allows"
            )

    def key(self, key: Any) -> Any:
        """The same value, fit to be a key or a member of a set.

        Raises:
            CheckpointError: hashing it, or many like it, could take for ever or overflow the stack.
        """
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
        text: they are stored as UTF-8 of the Latin-1 characters that are meant, as pickles of protocol 2
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


def is_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    """``isinstance``, for values whose content is not known."""
    return isinstance(value, tuple)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """``isinstance``, for values whose content is not known."""
    return isinstance(value, list)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """``isinstance``, for values whose content is not known."""
    return isinstance(value, dict)


class Built:
    """A value of ours that a pickle completes with a state."""

    def build(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


def _checked(key: Any) -> int:
    """How many values a key is made of."""
    parts: list[Any] = [key]
    seen = 0
    while parts:
        part = parts.pop()
        if type(part) is int and abs(part) >= _COUNTS_BELOW:
            raise CheckpointError("it is malformed: a key is a number beyond 2⁶⁰")
        if isinstance(part, (tuple, frozenset)):
            members = cast("Collection[Any]", part)
            seen += len(members)
            if seen > _IN_KEY:
                raise CheckpointError(f"it is malformed: a key is made of more than {_IN_KEY} values")
            parts += members
    return seen


def bounded(tree: Any, most: int) -> Any:
    """The same tree, which is finite: only records may hold themselves.

    Args:
        tree: what a pickle built.
        most: values that it may have when its shared branches are written out.

    Raises:
        CheckpointError: it nests too deeply, or unfolds to more.
    """
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

    def of(self, value: Any, depth: int) -> tuple[int, int]:
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


def _parts(value: Any) -> Iterable[Any] | None:
    if is_dict(value):
        return (part for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return cast("Iterable[Any]", value)
    return None
