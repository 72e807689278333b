"""The front door: what `polyak` exports, and that each exported name says what it is."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

import polyak

NAMES = {name: getattr(polyak, name) for name in polyak.__all__}
ERRORS = {n: o for n, o in NAMES.items() if isinstance(o, type) and issubclass(o, Exception)}
VERBS = {n: o for n, o in NAMES.items() if n not in ERRORS}
RESULTS = {"Average"}  # what other names return; shown in their examples


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as the linter sorts ``__all__``."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name


def test_all_is_sorted_and_holds_no_name_twice() -> None:
    assert polyak.__all__ == sorted(set(polyak.__all__), key=sort_key)


def exported(module: ModuleType) -> set[str]:
    """Names the module's source re-exports as ``x as x``, at the top or under TYPE_CHECKING."""
    tree = ast.parse(inspect.getsource(module))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname for node in froms for alias in node.names if alias.asname == alias.name}


def test_all_is_what_the_front_door_imports() -> None:
    assert set(polyak.__all__) == exported(polyak)


def test_star_import_gives_every_name() -> None:
    names: dict[str, Any] = {}
    exec("from polyak import *", names)
    assert set(polyak.__all__) <= set(names)
    assert dir(polyak) == sorted(polyak.__all__)


@pytest.mark.parametrize("package", ["polyak", "polyak.schedules", "polyak.torch"])
def test_a_package_has_all_that_type_checkers_see(package: str) -> None:
    module = import_module(package)
    names = exported(module)
    assert names <= set(dir(module))
    assert all(getattr(module, name) is getattr(module, name) for name in names)
    assert names <= set(vars(module))  # what was used once is kept
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'Ema'"):
        _ = module.Ema


def missing(obj: Any, name: str) -> list[str]:
    """What the docstring of a public class, function or method leaves out."""
    doc = inspect.getdoc(obj) or ""
    if not doc:
        return [f"{name}: no docstring"]
    if inspect.isclass(obj):
        given = [p for p in inspect.signature(obj).parameters if not inspect.isabstract(obj)]
        returns = False
    else:
        function = inspect.unwrap(obj)
        given = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        returns = inspect.signature(function).return_annotation not in ("None", None, inspect.Signature.empty)
    left = []
    if given and "Args:" not in doc and not all(f"{p}:" in doc or f"``{p}``" in doc for p in given):
        left.append(f"{name}: {given} but no Args")
    if returns and "Returns:" not in doc and "Yields:" not in doc and len(doc.splitlines()) > 1:
        left.append(f"{name}: returns something and does not say what")
    if not inspect.isclass(obj) and raises(obj) and "Raises:" not in doc:
        left.append(f"{name}: raises {raises(obj)} and does not say so")
    return left


def raises(function: Any) -> set[str]:
    """polyak's errors that the function's own body raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    calls = [n.exc.func for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    return {f.id for f in calls if isinstance(f, ast.Name)} & set(ERRORS)


@pytest.mark.parametrize("name", VERBS)
def test_a_public_name_says_what_it_takes_returns_and_raises(name: str) -> None:
    assert missing(VERBS[name], name) == []


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_when_it_is_raised(name: str) -> None:
    assert vars(ERRORS[name])["__doc__"]


@pytest.mark.parametrize("name", sorted(VERBS.keys() - RESULTS))
def test_a_public_name_has_an_example_or_a_source(name: str) -> None:
    doc = inspect.getdoc(VERBS[name]) or ""
    methods = [inspect.getdoc(member) or "" for _, member in members(VERBS[name])]
    assert any(">>>" in text or "Source:" in text for text in [doc, *methods])


def members(obj: Any) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself."""
    for key, value in vars(obj).items() if inspect.isclass(obj) else ():
        function = getattr(value, "__func__", value)
        if not key.startswith("_") and (inspect.isfunction(function) or isinstance(value, property)):
            yield key, function


METHODS = {f"{n}.{key}": member for n, obj in VERBS.items() for key, member in members(obj)}


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_has_a_docstring(name: str) -> None:
    owner, key = name.split(".")
    assert inspect.getdoc(getattr(VERBS[owner], key))


@pytest.mark.parametrize("name", [n for n in METHODS if n.startswith("EMA.")])
def test_a_verb_of_the_ema_says_what_it_raises(name: str) -> None:
    member = METHODS[name]
    if not isinstance(member, property):
        assert [left for left in missing(member, name) if "raises" in left] == []


def _silent(a: int) -> int:
    raise polyak.ConfigError("no")


def _half(a: int) -> int:
    """One line.

    And another.
    """
    raise polyak.PlanError("no")


def test_a_silent_name_is_seen() -> None:
    assert missing(_silent, "f") == ["f: no docstring"]
    assert len(missing(_half, "f")) == 2


def test_an_unexported_name_is_seen() -> None:
    assert "EMA" in exported(polyak)
    assert "import_module" not in exported(polyak)
