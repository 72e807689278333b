"""Averages that a script computes itself: loops over two models' tensors, functions that hold such a loop."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import isclose

_TENSORS = re.compile(r"([\w.]+)\.(?:named_)?(?:parameters|buffers|state_dict)\(")
_ENTRIES = re.compile(r"([A-Za-z_][\w.]*)\[")
_SUM = re.compile(r"\.lerp_?\(|\b1(?:\.0)? - ")  # avg + w·(θ - avg), or β·avg + (1-β)·θ
_NUMBER = re.compile(r"\b(?:0\.\d+|\de-\d+)")
_CALLED = re.compile(r"ema|av(era)?ge?|teacher|target|shadow|slow|swa|momentum|_k$", re.IGNORECASE)
_TRAINS = re.compile(r"\boptim\w*\.step\(|\.backward\(")
_DECAY = r"(?:[\w.]*\.)?(?:\w*decay|beta)"
_SWAPPED = re.compile(rf"mul_\(1(?:\.0)? - {_DECAY}\)|lerp_?\([\w.()\[\]]+, (?:weight=)?{_DECAY}\)")


def is_called_average(name: str) -> bool:
    """Whether this is a usual name of an averaged model."""
    return bool(_CALLED.search(name.rpartition(".")[2]))


def _averages(text: str) -> bool:
    """Whether it is an average's sum: 1-β as a difference, or two numbers of a line that add to 1."""
    lines = ([float(number) for number in _NUMBER.findall(line)] for line in text.splitlines())
    return bool(_SUM.search(text)) or any(
        isclose(a + b, 1) for line in lines for a, b in combinations(line, 2)
    )


@dataclass(frozen=True)
class Loop:
    """``for a, p in zip(ema.parameters(), model.parameters()): a.mul_(β).add_(p, alpha=1-β)`` and the like.

    average: the variable that holds the averaged model.  model: the other one.
    swapped: β weighs the model, and 1-β the average.
    rebinds: the sum is given to the loop's own variable, so no tensor changes.
    """

    line: int
    average: str
    model: str
    swapped: bool
    rebinds: bool


@dataclass(frozen=True)
class Updater:
    """A function that averages its arguments. ``average``, ``model``: which of them, by position."""

    loop: Loop
    average: int
    model: int


def loop_of(node: ast.AST) -> Loop | None:
    """The average that this statement computes, if it is a loop that does."""
    if not isinstance(node, ast.For):
        return None
    text, over = "\n".join(map(ast.unparse, node.body)), ast.unparse(node.iter)
    models = list(dict.fromkeys(_TENSORS.findall(over) + _TENSORS.findall(text)))
    inner = any(loop_of(one) for one in ast.walk(node) if one is not node)
    if inner or not models or not _averages(text):
        return None
    if len(models) == 1:  # the average is a dictionary by name
        models += _ENTRIES.findall(text)[:1]
        if len(models) == 1:
            return None
        models.reverse()
    average = next((name for name in models if is_called_average(name)), models[0])
    model = next((name for name in models if name != average), "")
    variables = {one.id for one in ast.walk(node.target) if isinstance(one, ast.Name)}
    return Loop(node.lineno, average, model, bool(_SWAPPED.search(text)), _rebinds(node, variables))


def _rebinds(node: ast.For, variables: set[str]) -> bool:
    sums = [one for one in node.body if isinstance(one, ast.Assign) and _averages(ast.unparse(one.value))]
    targets = [target for one in sums for target in one.targets]
    return bool(targets) and all(isinstance(t, ast.Name) and t.id in variables for t in targets)


def updaters(tree: ast.AST) -> dict[str, Updater]:
    """Functions of a script that average two of their arguments, by name."""
    found: dict[str, Updater] = {}
    methods = {id(one) for kind in _own(tree) for one in _functions(kind)}
    for function in (one for one in _functions(tree) if id(one) not in methods):
        names = [argument.arg for argument in function.args.args if argument.arg != "self"]
        for loop in filter(None, map(loop_of, ast.walk(function))):
            if loop.average in names:
                model = names.index(loop.model) if loop.model in names else -1
                found[function.name] = Updater(loop, names.index(loop.average), model)
    return found


def classes(tree: ast.AST) -> set[str]:
    """Classes of a script with a method that averages."""
    return {kind.name for kind in _own(tree)}


def _own(tree: ast.AST) -> list[ast.ClassDef]:
    kinds = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [kind for kind in kinds if _keeps_average(kind) and not _TRAINS.search(ast.unparse(kind))]


def _keeps_average(kind: ast.ClassDef) -> bool:
    """Whether a method is named like an update and averages in a loop."""
    updates = [one for one in _functions(kind) if re.fullmatch(r"update\w*|step|forward|__call__", one.name)]
    loops = [node for one in updates for node in ast.walk(one) if isinstance(node, ast.For)]
    return any(_averages(ast.unparse(loop)) for loop in loops)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
