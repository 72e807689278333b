"""Pickles read as data: nothing in them is imported, nothing is called.

A pickle is a program that builds objects. Plain values, tensors and arrays are built by functions of this
module; an object of any other class becomes a ``Record`` of its class's name and its state, so that a pickled
model can be inspected; and a *call* of something unknown (an enum's member, a partial function, a generator's
state) becomes a record of that call, which is never made.

The interpreter is the pure-Python one of the standard library. Payloads stay in the file: only their offsets
are read.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sized
from typing import Any, ClassVar

from polyak._files.checkpoint import LazyTensor, NoArray
from polyak._files.source import Source
from polyak._foreign.pickle_objects import (
    MOST,
    PLAIN,
    Budget,
    Built,
    Global,
    Maker,
    Makers,
    Payload,
    Record,
    bounded,
    encoded,
    hashing,
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
        """The offset of the next byte in the source."""
        return self._base + self._at

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes."""
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
        """Count bytes towards the limit of a model's structure, and one step of work."""
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
        """The next ``size`` bytes, left in the file if there are many."""
        if size < LAZY:
            return self.read(size)
        if size > self.end - self.tell():
            self.read(size)
        payload = Payload(self.source, self.tell(), size, text)
        self._base, self._buffer, self._at = self.tell() + size, b"", 0
        return payload

    def _fill(self, count: int) -> None:
        base = self.tell()
        size = min(max(count, _LINE), self.end - base)
        self._buffer, self._base, self._at = self.source.read(base, size), base, 0


class Inert(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Builds values and records from a pickle.

    Args:
        stream: at the start of the pickle; afterwards at its end.
        makers: replacements of known functions and classes, by module and name.
        persistent: builds the value of a persistent id; without it, ids are refused.
    """

    # Attributes that the interpreter sets when it starts, which are in no stub.
    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)  # pyright: ignore

    def __init__(self, stream: Stream, makers: Makers, persistent: Maker | None = None) -> None:
        super().__init__(stream, encoding="latin1")  # pyright: ignore
        self._stream, self._key, self._persistent = stream, stream.budget.key, persistent
        self._makers = {**PLAIN, **hashing(self._key), **makers}

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > _SHOWN:
            raise pickle.UnpicklingError(f"the name of a class has more than {_SHOWN} letters")
        return self._makers.get((module, name), Global(module, name))

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of itself")
        self._pay(pid if is_tuple(pid) else (pid,))
        return self._persistent(pid)

    def _call(self, function: Any, args: object) -> object:
        """The result of one of our functions; of any other, a record of the call, which is not made."""
        args = self._pay(args)
        if not isinstance(function, (Global, Record)):
            return function(*args)
        tensor = any(isinstance(arg, LazyTensor) for arg in args)  # what is made of one may be one
        return NoArray(f"made by {function}") if tensor else Record(function.module, function.name, args)

    def _pay(self, args: object) -> tuple[object, ...]:
        """The arguments of a call, which may copy them; a million calls can share them."""
        if not is_tuple(args):
            raise pickle.UnpicklingError("arguments are not a tuple")
        letters = sum(len(arg) for arg in args if isinstance(arg, (str, bytes)))
        values = sum(len(arg) for arg in args if isinstance(arg, Sized)) - letters
        self._stream.spend(letters + _CALL * (4 + len(args) + values))
        self._stream.budget.work(_STEPS + (letters + 8 * values) // 64)
        return args

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _newobj(self) -> None:
        args, cls = self.stack.pop(), self.stack[-1]
        new = Record(cls.module, cls.name, self._pay(args)) if isinstance(cls, Global) else None
        self.stack[-1] = self._call(cls, args) if new is None else new

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self._newobj()

    def _obj(self) -> None:
        cls, *args = self.pop_mark()
        self.append(self._call(cls, tuple(args)))

    def _inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = tuple(self.pop_mark())  # not within the next line: it replaces ``append``
        self.append(self._call(self.find_class(module, name), args))

    def _build(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
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

    def _number(self) -> None:
        """A number as text: Python limits decimal digits, but not others."""
        line = self.readline()[:-1]
        if len(line) > _LONGEST:
            raise pickle.UnpicklingError(f"a number has {len(line):,} digits")
        self.append(line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"), 0))

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][self._key(key)] = value

    def _setitems(self) -> None:
        pairs, target = self._pairs(), self.stack[-1]
        for key, value in pairs:
            target[self._key(key)] = value

    def _dict(self) -> None:
        pairs = self._pairs()
        self.append({self._key(key): value for key, value in pairs})

    def _pairs(self) -> Iterable[tuple[Any, Any]]:
        items = self.pop_mark()
        return zip(items[::2], items[1::2], strict=True)

    def _additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        for item in items:
            target.add(self._key(item))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(self._key, items)))

    for _code, _method in {
        pickle.REDUCE: _reduce,
        pickle.NEWOBJ: _newobj,
        pickle.NEWOBJ_EX: _newobj_ex,
        pickle.OBJ: _obj,
        pickle.INST: _inst,
        pickle.BUILD: _build,
        pickle.FRAME: _frame,
        pickle.BINUNICODE: _text,
        pickle.BINSTRING: _python_2_string,
        pickle.LONG4: _long,
        pickle.INT: _number,
        pickle.LONG: _number,
        pickle.SETITEM: _setitem,
        pickle.SETITEMS: _setitems,
        pickle.DICT: _dict,
        pickle.ADDITEMS: _additems,
        pickle.FROZENSET: _frozenset,
        pickle.BINBYTES: _bytes,
        pickle.BINBYTES8: _many_bytes,
        pickle.BYTEARRAY8: _many_bytes,
        pickle.EXT1: _extension,
        pickle.EXT2: _extension,
        pickle.EXT4: _extension,
        pickle.NEXT_BUFFER: _extension,
        pickle.READONLY_BUFFER: _extension,
    }.items():
        dispatch[_code[0]] = _method


def load(stream: Stream, makers: Makers, persistent: Maker | None = None) -> Any:
    """The value that the pickle at a stream's place builds."""
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
