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
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "rules": set(),
    "reference": {"rules"},
    "checkpoints": {"rules"},
    "core": {"checkpoints", "rules"},  # checkpoints, because ema.save writes files
    "torch": {"core", "checkpoints", "rules"},
    "paddle": {"core", "checkpoints", "rules"},
    "dropin": {"torch", "paddle", "core", "checkpoints", "rules"},
    "trainers": {"torch", "core", "checkpoints", "rules"},
    "doctor": set(),
    "demo": {"polyak", "paddle"},  # the front doors only: the demo is what a user could write
    "bench": {"polyak"},  # likewise: what it measures is what a user gets
    "report": {"checkpoints", "rules"},
    "cli": {"doctor", "bench", "demo", "report", "torch", "checkpoints", "rules"},
    "polyak": {"torch", "checkpoints", "rules"},  # the front door itself
    "__main__": {"cli"},
}

# Outside packages, by the rooms that may import them. The standard library is free.
PACKAGES: dict[str, set[str]] = {
    "numpy": {"rules", "reference", "checkpoints", "core", "torch", "paddle", "dropin", "report", "demo"},
    "ml_dtypes": {"checkpoints"},
    "fsspec": {"checkpoints"},
    "torch": {"torch", "dropin", "trainers", "demo", "bench"},
    "paddle": {"paddle", "dropin", "demo"},
    "triton": {"torch"},
    "lightning": {"trainers"},
    "pytorch_lightning": {"trainers"},
    "transformers": {"trainers"},
    "accelerate": {"trainers"},
    "ultralytics": {"trainers"},
    "ignite": {"trainers"},
    "keras": {"trainers"},
    "typer": {"cli"},
    "rich": {"cli", "demo"},
    "matplotlib": {"report"},
    "pooch": {"demo"},
    "sklearn": {"demo"},
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
                    (node.lineno, f"polyak.{a.name}" if a.name in ARROWS else "polyak") for a in node.names
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
    if here not in ARROWS:
        return [f"{path}: {here!r} is no room of the house"]
    for line, target in imports(source):
        top, *inner = target.split(".")
        there = inner[0] if top == "polyak" and inner else top
        if target.startswith("."):
            found.append(f"{path}:{line}: a relative import hides the room it goes to")
        elif top == "polyak":
            if there not in {here, "errors"} | ARROWS[here]:
                found.append(f"{path}:{line}: {here} must not import {there}")
        elif top in PACKAGES and here not in PACKAGES[top]:
            found.append(f"{path}:{line}: {here} must not import {top}")
        elif top not in PACKAGES and top not in sys.stdlib_module_names:
            found.append(f"{path}:{line}: {top} is no dependency of any room")
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_file_imports_only_where_its_arrows_point(path: Path) -> None:
    assert offences(path.relative_to(SRC), path.read_text()) == []


def test_the_arrows_form_no_circle() -> None:
    left = {here: there - {here} for here, there in ARROWS.items() if here != "polyak"}
    left = {here: there - {"polyak"} for here, there in left.items()}
    while ready := [here for here, there in left.items() if not there]:
        left = {here: there - set(ready) for here, there in left.items() if here not in ready}
    assert left == {}


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("rules/decay.py", "import torch", "rules must not import torch"),
        ("rules/decay.py", "def f():\n    from polyak.torch import EMA", "rules must not import torch"),
        ("reference.py", "from polyak.checkpoints import load", "reference must not import checkpoints"),
        ("checkpoints/read.py", "from polyak import torch", "checkpoints must not import torch"),
        ("checkpoints/read.py", "import torch.nn", "checkpoints must not import torch"),
        ("demo/run.py", "from polyak.torch.plan import Plan", "demo must not import torch"),
        ("bench/peers.py", "from polyak.torch import EMA", "bench must not import torch"),
        ("torch/ema.py", "from polyak import EMA", "torch must not import polyak"),
        ("torch/ema.py", "from .plan import Plan", "relative import"),
        ("errors.py", "from polyak.rules import Decay", "errors must not import rules"),
        ("rules/decay.py", "import pandas", "pandas is no dependency"),
        ("attic/old.py", "", "no room"),
    ],
)
def test_a_wrong_arrow_is_seen(path: str, source: str, words: str) -> None:
    [offence] = offences(Path(path), source)
    assert words in offence
