"""docs/reference.md documents exactly what is public; sources are read, not imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import polyak

SRC = Path(polyak.__file__).parent
PAGE = SRC.parents[1] / "docs" / "reference.md"

# A package is what its __init__ exports; in a room of single files each is a package of its own.
PACKAGES = (
    "polyak",
    *(
        f"polyak.{room}"
        for room in (
            "torch",
            "paddle",
            "schedules",
            "archive",
            "merge",
            "select",
            "server",
            "report",
            "doctor",
        )
    ),
)
FILES = ("polyak.errors", "polyak.reference", "polyak.losses", "polyak.bench.cost", "polyak.bench.plan")
ROOMS_OF_FILES = ("trainers", "dropin")


def tree_of(module: str) -> ast.Module:
    inner = Path(*module.split(".")[1:])
    file = SRC / inner / "__init__.py" if (SRC / inner).is_dir() else SRC / inner.with_suffix(".py")
    return ast.parse(file.read_text())


def reexported(tree: ast.Module) -> dict[str, str]:
    """Names imported ``x as x``, at the top or under TYPE_CHECKING, and the module each comes from."""
    return {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname == alias.name
    }


def listed(tree: ast.Module) -> list[str]:
    """``__all__``, where a module has one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def defined(tree: ast.Module) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def exports(module: str) -> set[str]:
    """A module's public names."""
    tree = tree_of(module)
    return set(listed(tree)) or {*reexported(tree), *(set() if module in PACKAGES else defined(tree))}


def origin(module: str, name: str) -> str:
    """Where a name is defined, however many modules pass it on."""
    passed = reexported(tree_of(module)) if module.startswith("polyak") else {}
    return origin(passed[name], name) if name in passed else f"{module}.{name}"


def modules() -> Iterator[str]:
    """All public modules."""
    yield from (*PACKAGES, *FILES)
    for room in ROOMS_OF_FILES:
        names = {path.stem for path in (SRC / room).glob("[!_]*.py")}
        yield from (f"polyak.{room}.{name}" for name in sorted(names))


def documented(page: str) -> set[str]:
    """Where all that the page documents is defined; a module stands for all that it exports."""
    found: set[str] = set()
    for entry in re.findall(r"^::: (\S+)$", page, re.MULTILINE):
        if entry in (*FILES, *modules()):
            found |= {origin(entry, name) for name in exports(entry)}
        else:
            module, _, name = entry.rpartition(".")
            assert module in modules(), f"{entry}: {module} is not public"
            assert name in exports(module), f"{entry}: {module} does not export it"
            found.add(origin(module, name))
    return found


def test_the_reference_documents_exactly_what_is_public() -> None:
    public = {origin(module, name) for module in modules() for name in exports(module)}
    assert documented(PAGE.read_text()) == public


def test_no_private_room_is_named() -> None:
    assert re.findall(r"^::: .*\._.*$", PAGE.read_text(), re.MULTILINE) == []


def test_nothing_is_documented_twice() -> None:
    entries = re.findall(r"^::: (\S+)$", PAGE.read_text(), re.MULTILINE)
    assert len(entries) == len(set(entries))


def test_a_name_that_is_left_out_is_seen() -> None:
    whole = PAGE.read_text()
    assert documented(whole) - documented(whole.replace("::: polyak.HalfLife\n", "")) == {
        "polyak.schedules.half_life.HalfLife"
    }
    assert origin("polyak", "EMA") == "polyak.torch.ema.EMA"
