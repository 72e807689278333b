"""The exception tree is the one drawn in the docstring of `polyak.errors`."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys

import pytest

import polyak
from polyak import errors

LINE = re.compile(r"^ *[├└]── (\w+) *(?:\(also (\w+)\))?", re.MULTILINE)


def drawn(docstring: str) -> dict[str, set[str]]:
    """Name to bases, as the drawing has them."""
    return {name: {"PolyakError", also} - {""} for name, also in LINE.findall(docstring)}


def real() -> dict[str, set[str]]:
    """Name to bases, as the classes have them."""
    tree = {n: c for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    return {n: {base.__name__ for base in c.__bases__} for n, c in tree.items() if n != "PolyakError"}


def test_the_tree_is_as_drawn() -> None:
    assert drawn(errors.__doc__ or "") == real()


def test_every_error_is_at_the_front_door() -> None:
    assert set(real()) | {"PolyakError"} <= set(polyak.__all__)


@pytest.mark.parametrize("name", real())
def test_an_error_is_caught_as_what_it_also_is(name: str) -> None:
    error = getattr(errors, name)
    for base in real()[name]:
        assert issubclass(error, getattr(errors, base, None) or getattr(builtins, base))


def test_a_missing_extra_answers_with_its_pip_line() -> None:
    assert 'pip install "polyak[torch]"' in str(polyak.MissingExtraError("PyTorch", "torch"))


def test_a_missing_branch_is_seen() -> None:
    text = (errors.__doc__ or "").replace("PlanError", "PlaneError")
    assert drawn(text) != real()
    assert drawn((errors.__doc__ or "").replace("(also ValueError)", "")) != real()


@pytest.mark.slow
def test_pip_takes_an_extra_from_the_installed_polyak_and_asks_no_index() -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "polyak[torch]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Requirement already satisfied: polyak[torch]" in done.stdout, done.stderr
