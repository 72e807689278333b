"""The tests' own rules: every folder says what it promises, and none reaches two private steps inside."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from conftest import SLOW

TESTS = Path(__file__).parents[1]


def test_every_folder_says_what_it_promises() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    listed = re.findall(r"^\| `(\w+)` \| \S", (TESTS / "README.md").read_text(), re.MULTILINE)
    assert listed == sorted(folders)


def test_what_is_slow_is_there() -> None:
    for entry in SLOW:
        path, _, name = entry.partition("::")
        assert (TESTS.parent / path).exists(), entry
        assert not name or f"def {name}" in (TESTS.parent / path).read_text(), entry


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def too_deep(source: str) -> list[str]:
    """Private attributes of private attributes, ``x._a._b``, through calls and subscripts too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and private(node.attr):
            inner = node.value
            while isinstance(inner, ast.Subscript | ast.Call):
                inner = inner.value if isinstance(inner, ast.Subscript) else inner.func
            if isinstance(inner, ast.Attribute) and private(inner.attr):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_private_attribute_of_a_private_attribute(path: Path) -> None:
    assert too_deep(path.read_text()) == []


@pytest.mark.parametrize("source", ["x._a._b", "x._a[0]._b", "x._a()._b = 1"])
def test_one_is_seen(source: str) -> None:
    assert len(too_deep(source)) == 1
    assert too_deep("x._a.b + polyak._core.c + x.__class__._a") == []
