"""What replaces the names of the standard library in a pickle: functions of ours that build plain values."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from polyak._foreign.pickle_objects import Global, Payload, Record, is_dict

Maker: TypeAlias = Callable[..., Any]  # builds what a call of the name would


def _reconstructed(cls: Any, base: Any, state: Any) -> Any:
    if isinstance(cls, (Global, Record)):
        return Record(cls.module, cls.name)
    return cls() if state is None else cls(state)


def _newobj_of(cls: Any, *args: Any) -> Any:
    return Record(cls.module, cls.name, args) if isinstance(cls, (Global, Record)) else cls(*args)


def encoded(text: Any, encoding: str = "latin1") -> Any:
    """Bytes that protocol 2 spells as Latin-1 text; long ones are left in the file."""
    latin = encoding in ("latin1", "latin-1")
    if isinstance(text, Payload) and latin:
        return text
    if isinstance(text, Payload) or not (latin or encoding in ("utf-8", "ascii")):
        raise pickle.UnpicklingError("bytes are spelled in an encoding that Python does not use for it")
    return text.encode(encoding)


def hashing(key: Maker) -> dict[tuple[str, str], Any]:
    """What replaces the containers of the standard library whose items are hashed."""

    def ordered(items: Any = ()) -> OrderedDict[Any, Any]:
        pairs: Iterable[Any] = items.items() if is_dict(items) else items
        return OrderedDict((key(one), value) for one, value in pairs)

    def members(items: Iterable[Any] = ()) -> set[Any]:
        return set(map(key, items))

    def frozen(items: Iterable[Any] = ()) -> frozenset[Any]:
        return frozenset(map(key, items))

    made: dict[str, Maker] = {"set": members, "frozenset": frozen, "dict": ordered}
    return {
        ("collections", "OrderedDict"): ordered,
        ("collections", "Counter"): ordered,
        **{(module, name): make for module in _BUILTINS for name, make in made.items()},
    }


def _list(items: Iterable[Any] = (), *_: Any) -> list[Any]:
    return list(items)


def _no_default(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _bytes_like(value: Any = b"", *_: Any) -> Any:
    return value


def _namespace(*_: Any) -> Record:
    return Record("argparse", "Namespace")


def _path(*parts: str) -> str:
    return "/".join(parts)


def _inert(module: str, name: str) -> Maker:
    return lambda *args: Record(module, name, args)


_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")
_BUILTINS = ("builtins", "__builtin__")
_TIMES = ("datetime", "date", "time", "timedelta", "timezone")

# What replaces the names of the standard library that hold data. Their own code is not run.
PLAIN: dict[tuple[str, str], Any] = {
    ("collections", "defaultdict"): _no_default,
    ("collections", "deque"): _list,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("copyreg", "__newobj__"): _newobj_of,
    ("_codecs", "encode"): encoded,
    ("argparse", "Namespace"): _namespace,
    **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{("datetime", name): _inert("datetime", name) for name in _TIMES},
    **{
        (module, name): make
        for module in _BUILTINS
        for name, make in {
            "complex": complex,
            "slice": _inert("builtins", "slice"),
            "bytearray": _bytes_like,
            "bytes": _bytes_like,
            "list": _list,
            "object": Global("builtins", "object"),
        }.items()
    },
}
