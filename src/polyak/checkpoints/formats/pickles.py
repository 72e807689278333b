"""Pickles read as data: nothing in them is imported, nothing is called.

A pickle is a program that builds objects. Plain values, tensors and arrays are built here by functions of
ours; an object of any other class becomes a ``Record`` of its class's name and its state, so that a whole
pickled model can be looked into; and a pickle that asks to *call* something unknown is refused.

The interpreter is the pure-Python one of the standard library. Payloads stay in the file: what is read of
them is where they are.
"""

# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportAttributeAccessIssue=false
# What a pickle holds has no type until it is looked at, and the interpreter's stack is in no stub.

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from polyak.checkpoints.source import Source
from polyak.errors import CheckpointError

LAZY = 1 << 10  # bytes; payloads from this size on stay in the file
_LINE = 1 << 16  # bytes of a line in the text protocol
# What is not payload: a model of 100,000 tensors takes a fifth of it. One byte can make an object of 64.
_MOST = 1 << 26


@dataclass
class Record:
    """An object whose class is not known here: what the pickle says of it, and no more.

    Args:
        module: where its class is defined.
        name: of its class.
        args: what it was made with.
        state: usually the dict of its attributes; None before or without any.
        items: of a subclass of list, dict or set.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list[Any])

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
        self.items.append((key, value))

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


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
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes themselves."""
        return self.source.read(self.offset, self.size)


class Stream:
    """A part of a source, read from front to back through a small buffer."""

    def __init__(self, source: Source, start: int = 0, end: int | None = None) -> None:
        self.source = source
        self.end = source.size if end is None else end
        self._buffer, self._base, self._at = b"", start, 0
        self._left = _MOST

    def tell(self) -> int:
        """Where the next byte is read, in the source."""
        return self._base + self._at

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            pickle.UnpicklingError: they are not there, or more was read than any model's structure takes.
        """
        if count < 0 or count > self.end - self.tell():
            raise pickle.UnpicklingError(f"{count:,} bytes are needed at {self.tell():,}, the end is nearer")
        self.spend(count)
        if self._at + count > len(self._buffer):
            self._fill(count)
        self._at += count
        return self._buffer[self._at - count : self._at]

    def spend(self, amount: int) -> None:
        """Use up some of what a model's structure may take.

        Raises:
            pickle.UnpicklingError: it is more.
        """
        self._left -= amount
        if self._left < 0:
            raise pickle.UnpicklingError(f"its structure takes more than {_MOST:,} bytes")

    def readline(self) -> bytes:
        """The next line, its end included."""
        line = bytearray()
        while not line.endswith(b"\n"):
            if len(line) > _LINE:
                raise pickle.UnpicklingError(f"a line is longer than {_LINE:,} bytes")
            line += self.read(1)
        return bytes(line)

    def payload(self, size: int) -> Payload | bytes:
        """The next ``size`` bytes, left where they are when they are many."""
        if size < LAZY:
            return self.read(size)
        if size > self.end - self.tell():
            self.read(size)
        kept = Payload(self.source, self.tell(), size)
        self._base, self._buffer, self._at = self.tell() + size, b"", 0
        return kept

    def _fill(self, count: int) -> None:
        base = self.tell()
        size = min(max(count, _LINE), self.end - base)
        self._buffer, self._base, self._at = self.source.read(base, size), base, 0


# A function that stands for one that a pickle names.
Maker = Callable[..., Any]


class Inert(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Builds values and records from a pickle.

    Args:
        stream: where it begins; afterwards, where it ended.
        makers: what to build in place of calling the names known, by module and name.
        persistent: what a persistent id stands for; without it, one is refused.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # pyright: ignore

    def __init__(
        self, stream: Stream, makers: Mapping[tuple[str, str], Any], persistent: Maker | None = None
    ) -> None:
        super().__init__(stream, encoding="latin1")  # pyright: ignore
        self._stream, self._makers, self._persistent = stream, PLAIN | dict(makers), persistent

    def find_class(self, module: str, name: str) -> Any:
        return self._makers.get((module, name), Global(module, name))

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside of itself")
        return self._persistent(pid)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _called(self.stack[-1], self._paid(args))

    def _newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], self._paid(args))

    def _newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self._newobj()

    def _obj(self) -> None:
        args = self.pop_mark()
        self.append(_called(args[0], self._paid(tuple(args[1:]))))

    def _inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = self.pop_mark()
        self.append(_called(self.find_class(module, name), self._paid(tuple(args))))

    def _paid(self, args: Any) -> Any:
        """A call may copy what it is given, and one value can be given to a million calls."""
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("arguments are not a tuple")
        sized = [arg for arg in args if isinstance(arg, (str, bytes, list, tuple, dict, set, frozenset))]
        self._stream.spend(8 * len(args) + 8 * sum(map(len, sized)))
        return args

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

    def _bytes_of(self, width: int) -> None:
        self.append(self._stream.payload(int.from_bytes(self.read(width), "little")))

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _newobj
    dispatch[pickle.NEWOBJ_EX[0]] = _newobj_ex
    dispatch[pickle.OBJ[0]] = _obj
    dispatch[pickle.INST[0]] = _inst
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.FRAME[0]] = _frame
    dispatch[pickle.BINBYTES[0]] = lambda self: self._bytes_of(4)
    dispatch[pickle.BINBYTES8[0]] = lambda self: self._bytes_of(8)
    dispatch[pickle.BYTEARRAY8[0]] = lambda self: self._bytes_of(8)
    for _code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        dispatch[_code[0]] = _extension


class Built:
    """A value of ours that a pickle completes with a state."""

    def build(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


def load(stream: Stream, makers: Mapping[tuple[str, str], Any], persistent: Maker | None = None) -> Any:
    """The value that the pickle at a stream's place builds.

    Raises:
        CheckpointError: it is none, asks for a call, or is cut.
    """
    name = stream.source.name
    try:
        return Inert(stream, makers, persistent).load()
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{name} cannot be understood: it nests too deeply.") from error
    # The interpreter trusts its program: wrong operands raise whatever they raise.
    except Exception as error:
        raise CheckpointError(f"{name} cannot be understood as a pickle: {error or error!r}.") from error


def refusal(function: object) -> CheckpointError:
    """Of a call, and what to do about it."""
    return CheckpointError(
        f"the pickle asks to call {function}; polyak calls nothing that a file names. If you trust the file, "
        "load it where that is installed, and write its tensors with "
        "safetensors.torch.save_file(state_dict, path)."
    )


def _called(function: Any, args: Any) -> Any:
    if isinstance(function, Global):
        raise refusal(function)
    return function(*args)


def _made(cls: Any, args: Any) -> Any:
    if isinstance(cls, Global):
        return Record(cls.module, cls.name, tuple(args))
    return _called(cls, args)


def _reconstructed(cls: Any, base: Any, state: Any) -> Any:
    return Record(cls.module, cls.name) if isinstance(cls, Global) else cls() if state is None else cls(state)


def _newobj_of(cls: Any, *args: Any) -> Any:
    return _made(cls, args)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not one of text")
    return text.encode(encoding)


def _inert(module: str, name: str) -> Maker:
    return lambda *args: Record(module, name, args)


def _path(*parts: str) -> str:
    return "/".join(map(str, parts))


_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")
_TIMES = ("datetime", "date", "time", "timedelta", "timezone")

# What stands for the names of the standard library that hold data. Their own code is not run.
PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: OrderedDict(),
    ("collections", "Counter"): lambda items=(): OrderedDict(items),
    ("collections", "deque"): lambda items=(), *_: list(items),
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("copyreg", "__newobj__"): _newobj_of,
    ("_codecs", "encode"): _encoded,
    ("argparse", "Namespace"): lambda *_: Record("argparse", "Namespace"),
    **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{("datetime", name): _inert("datetime", name) for name in _TIMES},
    **{
        (module, name): make
        for module in ("builtins", "__builtin__")
        for name, make in {
            "set": set,
            "frozenset": frozenset,
            "complex": complex,
            "slice": _inert("builtins", "slice"),
            "bytearray": lambda value=b"", *_: value,
            "bytes": lambda value=b"", *_: value,
            "dict": dict,
            "list": list,
            "object": Global("builtins", "object"),
        }.items()
    },
}
