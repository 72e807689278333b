"""Imports point one way. The table is the architecture; everything else here reads imports and compares."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyak

SRC = Path(polyak.__file__).parent

# room: the rooms it may import. Every room may import errors and itself.
ROOMS = (
    "errors",
    "_lazy",
    "_type_guards",
    "_dtypes",
    "_wrappers",
    "schedules",
    "reference",
    "_files",
    "_foreign",
    "_kernel",
    "_core",
    "torch",
    "paddle",
    "archive",
    "merge",
    "convert",
    "select",
    "losses",
    "report",
    "dropin",
    "trainers",
    "server",
    "doctor",
    "demo",
    "bench",
    "cli",
    "polyak",
    "__main__",
)

# Stricter than the order: these import nothing but what is named here.
ONLY: dict[str, set[str]] = {
    "paddle": {"_core", "_kernel", "_files", "_dtypes", "_lazy", "schedules"},  # it does not know torch
    "losses": {"torch"},
    "doctor": {"_type_guards"},
    "demo": {"polyak", "paddle", "report"},  # the front doors, and a drawing: what a user could write
    "bench": {"polyak"},  # likewise: what it measures is what a user gets
    "polyak": {
        "torch",
        "select",
        "merge",
        "archive",
        "_foreign",
        "schedules",
        "_lazy",
    },  # the front door itself
    "__main__": {"cli"},
}


def allowed(here: str) -> set[str]:
    """The rooms that a room may import: those above it in the list, or the few named for it."""
    return ONLY.get(here, set(ROOMS[: ROOMS.index(here)])) | {here, "errors"}


# Outside packages, by the rooms that may import them. The standard library is free.
PACKAGES: dict[str, set[str]] = {
    "numpy": {*ROOMS}
    - {
        "errors",
        "_lazy",
        "_type_guards",
        "_wrappers",
        "trainers",
        "doctor",
        "bench",
        "cli",
        "polyak",
        "__main__",
    },
    "ml_dtypes": {"_dtypes", "_files"},
    "fsspec": {"_files"},
    "torch": {"torch", "losses", "dropin", "trainers", "demo", "bench"},
    "typing_extensions": {"_core", "torch", "paddle", "trainers"},  # both frameworks bring it
    "paddle": {"paddle", "dropin", "trainers", "demo"},
    "triton": {"torch"},
    "lightning": {"trainers"},
    "pytorch_lightning": {"trainers"},
    "transformers": {"trainers"},
    "accelerate": {"trainers"},
    "ultralytics": {"trainers"},
    "ignite": {"trainers"},
    "keras": {"trainers"},
    "typer": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"report"},
    "pooch": {"demo"},
    "sklearn": {"demo"},
    "ray": {"server"},
}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted target of every import, those inside functions and TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level
            elif node.module == "polyak":
                # `from polyak import x` may name a room; what is no room is a name of the front door.
                yield from (
                    (node.lineno, f"polyak.{a.name}" if a.name in ROOMS else "polyak") for a in node.names
                )
            elif node.module:
                yield node.lineno, node.module


def room(path: Path) -> str:
    """The room a file stands in: its folder, or its own name at the top."""
    first = path.parts[0]
    return "polyak" if first == "__init__.py" else first.removesuffix(".py")


def offences(path: Path, source: str) -> list[str]:
    """What a file imports against the arrows."""
    here, found = room(path), []
    if here not in ROOMS:
        return [f"{path}: {here!r} is no room of the house"]
    for line, target in imports(source):
        top, *inner = target.split(".")
        there = inner[0] if top == "polyak" and inner else top
        if target.startswith("."):
            found.append(f"{path}:{line}: a relative import hides the room it goes to")
        elif top == "polyak":
            if there not in allowed(here):
                found.append(f"{path}:{line}: {here} must not import {there}")
        elif top in PACKAGES and here not in PACKAGES[top]:
            found.append(f"{path}:{line}: {here} must not import {top}")
        elif top not in PACKAGES and top not in sys.stdlib_module_names:
            found.append(f"{path}:{line}: {top} is no dependency of any room")
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_imports_only_where_its_arrows_point(path: Path) -> None:
    assert offences(path.relative_to(SRC), path.read_text()) == []


def test_what_a_room_alone_may_import_stands_above_it() -> None:
    for here, there in ONLY.items():
        above = {*ROOMS[: ROOMS.index(here)]} | ({"polyak"} if here in ("demo", "bench") else set())
        assert there <= above


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("schedules/decay.py", "import torch", "schedules must not import torch"),
        (
            "schedules/decay.py",
            "def f():\n    from polyak.torch import EMA",
            "schedules must not import torch",
        ),
        ("reference.py", "from polyak._files import open", "reference must not import _files"),
        ("_files/open.py", "from polyak import torch", "_files must not import torch"),
        ("_files/open.py", "import torch.nn", "_files must not import torch"),
        ("demo/run.py", "from polyak.torch.tensor_map import Plan", "demo must not import torch"),
        ("bench/contender.py", "from polyak.torch import EMA", "bench must not import torch"),
        ("torch/ema.py", "from polyak import EMA", "torch must not import polyak"),
        ("torch/ema.py", "from .plan import Plan", "relative import"),
        ("errors.py", "from polyak.schedules import Decay", "errors must not import schedules"),
        ("schedules/decay.py", "import pandas", "pandas is no dependency"),
        ("attic/old.py", "", "no room"),
    ],
)
def test_a_wrong_arrow_is_seen(path: str, source: str, words: str) -> None:
    [offence] = offences(Path(path), source)
    assert words in offence
