"""Pickles read as data: nothing in them is imported, nothing is called.

A pickle is a program that builds objects. Plain values, tensors and arrays are built here by functions of
ours; an object of any other class becomes a ``Record`` of its class's name and its state, so that a whole
pickled model can be looked into; and what would need a *call* of something unknown (an enum's member, a
partial function, a generator's state) stays a record of that call, which is never made.

The interpreter is the pure-Python one of the standard library. Payloads stay in the file: what is read of
them is where they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sized
from typing import Any, ClassVar

from polyak._files.checkpoint import LazyTensor, NoArray
from polyak._files.source import Source
from polyak._foreign.builtin_makers import PLAIN, Maker, encoded, hashing
from polyak._foreign.pickle_objects import (
    MOST,
    Budget,
    Built,
    Global,
    Payload,
    Record,
    bounded,
    is_tuple,
)
from polyak.errors import CheckpointError

LAZY = 1 << 10  # bytes; payloads from this size on stay in the file
_LINE = 1 << 16  # bytes of a line in the text protocol
_LONGEST = 255  # bytes, or digits, of a whole number: to multiply two of a megabyte takes seconds
_CALL = 4  # bytes of MOST that each value given to a call costs: it may copy them
_STEPS = 4  # of work that a call takes at least
_SHOWN = 300  # characters of an error's text, or of a name in it: the file decides what they are


class Stream:
    """A part of a source, read from front to back through a small buffer."""

    def __init__(
        self,
        source: Source,
        start: int = 0,
        end: int | None = None,
        most: int = MOST,
        budget: Budget | None = None,
    ) -> None:
        self.source = source
        self.end = source.size if end is None else end
        self.budget = Budget(source.size) if budget is None else budget
        self._buffer, self._base, self._at = b"", start, 0
        self._most = self._left = most

    def tell(self) -> int:
        """Where the next byte is read, in the source."""
        return self._base + self._at

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            pickle.UnpicklingError: they are not there, or more was read than any model's structure takes.
        """
        at, end = self._at, self._at + count
        if not at <= end <= len(self._buffer):
            if count < 0 or count > self.end - self.tell():
                raise pickle.UnpicklingError(
                    f"{count:,} bytes are needed at {self.tell():,}, the end is nearer"
                )
            self._fill(count)
            at, end = 0, count
        self.spend(count)
        self._at = end
        return self._buffer[at:end]

    def spend(self, amount: int) -> None:
        """Use up some of what a model's structure may take, and one step of work.

        Raises:
            CheckpointError: it is more.
        """
        self._left -= amount
        self.budget.left -= 1
        if self.budget.left < 0:
            self.budget.work(0)
        if self._left < 0:
            raise CheckpointError(f"its structure takes more than {self._most:,} bytes: it is malformed")

    def readline(self) -> bytes:
        """The next line, its end included."""
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) > _LINE:
                raise pickle.UnpicklingError(f"a line is longer than {_LINE:,} bytes")
            line += self.read(1)
        return bytes(line)

    def payload(self, size: int, text: bool = False) -> Payload | bytes:
        """The next ``size`` bytes, left where they are when they are many."""
        if size < LAZY:
            return self.read(size)
        if size > self.end - self.tell():
            self.read(size)
        kept = Payload(self.source, self.tell(), size, text)
        self._base, self._buffer, self._at = self.tell() + size, b"", 0
        return kept

    def _fill(self, count: int) -> None:
        base = self.tell()
        size = min(max(count, _LINE), self.end - base)
        self._buffer, self._base, self._at = self.source.read(base, size), base, 0


class Inert(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Builds values and records from a pickle.

    Args:
        stream: where it begins; afterwards, where it ended.
        makers: what to build in place of calling the names known, by module and name.
        persistent: what to build for a persistent id; without it, one is refused.
    """

    # The interpreter's own, which it sets when it begins and which are in no stub.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # pyright: ignore

    def __init__(
        self, stream: Stream, makers: Mapping[tuple[str, str], Any], persistent: Maker | None = None
    ) -> None:
        super().__init__(stream, encoding="latin1")  # pyright: ignore
        self._stream, self._key, self._persistent = stream, stream.budget.key, persistent
        self._makers = PLAIN | hashing(self._key) | dict(makers)

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > _SHOWN:
            raise pickle.UnpicklingError(f"the name of a class has more than {_SHOWN} letters")
        return self._makers.get((module, name), Global(module, name))

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of itself")
        self._paid(pid if is_tuple(pid) else (pid,))
        return self._persistent(pid)

    def _called(self, function: Any, args: Any) -> Any:
        """What one of our functions makes; of any other the call stays undone, as a record."""
        self._paid(args)
        if not isinstance(function, (Global, Record)):
            return function(*args)
        tensor = any(isinstance(arg, LazyTensor) for arg in args)  # what is made of one may be one
        return NoArray(f"made by {function}") if tensor else Record(function.module, function.name, args)

    def _made(self, cls: Any, args: Any) -> Any:
        if isinstance(cls, Global):
            self._paid(args)
            return Record(cls.module, cls.name, args)
        return self._called(cls, args)

    def _paid(self, args: Any) -> None:
        """A call may copy what it is given, and the same can be given to a million calls."""
        if not is_tuple(args):
            raise pickle.UnpicklingError("arguments are not a tuple")
        letters = sum(len(arg) for arg in args if isinstance(arg, (str, bytes)))
        values = sum(len(arg) for arg in args if isinstance(arg, Sized)) - letters
        self._stream.spend(letters + _CALL * (4 + len(args) + values))
        self._stream.budget.work(_STEPS + (letters + 8 * values) // 64)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._called(self.stack[-1], args)

    def _newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self._newobj()

    def _obj(self) -> None:
        args = self.pop_mark()
        self.append(self._called(args[0], tuple(args[1:])))

    def _inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = self.pop_mark()
        self.append(self._called(self.find_class(module, name), tuple(args)))

    def _build(self) -> None:
        state = self.stack.pop()
        value = self.stack[-1]
        if isinstance(value, Record):
            value.state = state
        elif isinstance(value, Built):
            value.build(state)
        # What else is built upon (the _metadata of an ordered dict) says nothing of weights.

    def _extension(self) -> None:
        raise pickle.UnpicklingError("it uses the registry of extensions, whose meaning is not in the file")

    def _frame(self) -> None:
        self.read(8)  # frames tell how far to read ahead; nothing is read ahead here

    def _bytes(self, width: int = 4) -> None:
        self.append(self._stream.payload(int.from_bytes(self.read(width), "little")))

    def _many_bytes(self) -> None:
        self._bytes(8)

    def _text(self) -> None:
        """Text; bytes that protocol 2 spells as text may stay in the file."""
        size = int.from_bytes(self.read(4), "little")
        if self.stack and self.stack[-1] is encoded and size >= LAZY:
            self.append(self._stream.payload(size, text=True))
        else:
            self.append(str(self.read(size), "utf-8", "surrogatepass"))

    def _python_2_string(self) -> None:
        data = self._stream.payload(int.from_bytes(self.read(4), "little", signed=True))
        self.append(data if isinstance(data, Payload) else data.decode("latin1"))

    def _long(self) -> None:
        size = int.from_bytes(self.read(4), "little", signed=True)
        if size > _LONGEST:
            raise pickle.UnpicklingError(f"a number has {size:,} bytes")
        self.append(pickle.decode_long(self.read(size)))

    def _digits(self) -> bytes:
        """Of a number spelled out: Python bounds decimal digits, but not others."""
        line = self.readline()[:-1]
        if len(line) > _LONGEST:
            raise pickle.UnpicklingError(f"a number has {len(line):,} digits")
        return line

    def _int(self) -> None:
        line = self._digits()
        self.append(line == b"01" if line in (b"00", b"01") else int(line, 0))

    def _long_digits(self) -> None:
        self.append(int(self._digits().removesuffix(b"L"), 0))

    def _item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][self._key(key)] = value

    def _items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for i in range(0, len(items), 2):
            target[self._key(items[i])] = items[i + 1]

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({self._key(items[i]): items[i + 1] for i in range(0, len(items), 2)})

    def _members(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for item in items:
            target.add(self._key(item))

    def _frozen(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(self._key, items)))

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _newobj
    dispatch[pickle.NEWOBJ_EX[0]] = _newobj_ex
    dispatch[pickle.OBJ[0]] = _obj
    dispatch[pickle.INST[0]] = _inst
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.FRAME[0]] = _frame
    dispatch[pickle.BINUNICODE[0]] = _text
    dispatch[pickle.BINSTRING[0]] = _python_2_string
    dispatch[pickle.LONG4[0]] = _long
    dispatch[pickle.INT[0]] = _int
    dispatch[pickle.LONG[0]] = _long_digits
    dispatch[pickle.SETITEM[0]] = _item
    dispatch[pickle.SETITEMS[0]] = _items
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.ADDITEMS[0]] = _members
    dispatch[pickle.FROZENSET[0]] = _frozen
    dispatch[pickle.BINBYTES[0]] = _bytes
    dispatch[pickle.BINBYTES8[0]] = _many_bytes
    dispatch[pickle.BYTEARRAY8[0]] = _many_bytes
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_code[0]] = _extension


def load(stream: Stream, makers: Mapping[tuple[str, str], Any], persistent: Maker | None = None) -> Any:
    """The value that the pickle at a stream's place builds.

    Raises:
        CheckpointError: it is none, asks for a call, or is cut.
    """
    name = stream.source.name
    try:
        return bounded(Inert(stream, makers, persistent).load(), stream.budget.most)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{name} cannot be understood: it nests too deeply.") from error
    # The interpreter trusts its program: wrong operands raise whatever they raise.
    except Exception as error:
        what = (str(error) or repr(error))[:_SHOWN]
        raise CheckpointError(f"{name} cannot be understood as a pickle: {what}.") from error
