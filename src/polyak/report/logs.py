"""Logs of training as columns: JSON lines, CSV files, and the state that the Hugging Face Trainer keeps.

Each reader takes the place at which the last call ended and returns the new one, so that a log that grows is
read once. A last line without its end is left for the next call. A line that a killed process left half
written, and its successor went on with, is counted and left out.
"""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from polyak._dtypes import Array
from polyak._type_guards import is_dict

CHUNK = 1 << 24  # bytes read in one call
Row: TypeAlias = Mapping[str, float]
# Names of the column that counts; the first that a row has is its step.
STEPS = ("step", "global_step", "trainer/global_step", "iteration", "iter", "epoch")


class Read(NamedTuple):
    """Rows, the place in the file after them, and the number of lines that were none."""

    rows: list[Row]
    end: int
    torn: int = 0


def json_lines(path: Path, begin: int = 0) -> Read:
    """Rows of a file with a JSON object in each line; nested objects as ``outer/inner``.

    Args:
        path: of the file.
        begin: the ``end`` of the call before.
    """
    text, end = _new_lines(path, begin)
    rows: list[Row] = []
    torn = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            rows.append(_numbers(_object(line)))
        except ValueError:
            torn += 1
    return Read([row for row in rows if row], end, torn)


def csv_lines(path: Path, begin: int = 0) -> Read:
    """Rows of a CSV file with a line of names; empty cells and words are left out.

    Args:
        path: of the file.
        begin: the ``end`` of the call before.
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        first = next(csv.reader(file), list[str]())
        names = [name.strip() for name in first]
    text, end = _new_lines(path, begin)
    lines = csv.reader(text.splitlines())
    if begin == 0:
        next(lines, None)
    rows = (dict(zip(names, map(_number, cells), strict=False)) for cells in lines)
    return Read([row for cells in rows if (row := {k: v for k, v in cells.items() if v is not None})], end)


def trainer_state(path: Path, begin: int = 0) -> Read:
    """Rows of the ``log_history`` in a ``trainer_state.json``; that file is replaced, not appended to.

    Args:
        path: of the file.
        begin: the number of rows seen.

    Raises:
        ValueError: it is no such file.
    """
    state = _object(path.read_text(encoding="utf-8"))
    history: list[dict[str, Any]] = state.get("log_history", [])
    return Read([_numbers(row) for row in history[begin:]], len(history))


class Column(NamedTuple):
    """The values of one name and the steps they belong to, ascending."""

    axis: str  # the name of the column that counts
    steps: Array
    values: Array


class Columns:
    """Rows by name, each with its own steps.

    A run that was resumed logs some steps again; the last line of a step counts.

    Examples:
        >>> both = Columns()
        >>> both.add([{"step": 2, "loss": 0.4, "acc": 0.9}, {"step": 1, "loss": 0.5}])
        >>> both.sorted()["loss"]
        Column(axis='step', steps=array([1., 2.]), values=array([0.5, 0.4]))
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, array[float], array[float]]] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Take more rows; those without a step are left out."""
        for row in rows:
            axis = next((name for name in STEPS if name in row), None)
            for name, value in row.items() if axis is not None else ():
                if name not in STEPS or (name == "epoch" and name != axis):
                    if name not in self._found:
                        self._found[name] = axis or "", array("d"), array("d")
                    _, steps, values = self._found[name]
                    steps.append(row[axis or ""])
                    values.append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def join(self, later: Columns, behind: int = 0) -> None:
        """Take the rows of a log that was begun later; one that counts otherwise takes the column over.

        Args:
            later: the log's columns.
            behind: how much less than the checkpoints the log counts.
        """
        for name, (axis, steps, values) in later._found.items():
            counted = array("d", [step + behind for step in steps]) if behind else steps[:]
            if name in self._found and self._found[name][0] == axis:
                self._found[name][1].extend(counted)
                self._found[name][2].extend(values)
            else:
                self._found[name] = axis, counted, values[:]

    def sorted(self) -> dict[str, Column]:
        """The columns, each step once."""
        found: dict[str, Column] = {}
        for name, (axis, steps, values) in self._found.items():
            # Of equal steps np.unique takes the first, so from the back the last.
            unique, places = np.unique(np.array(steps)[::-1], return_index=True)
            found[name] = Column(axis, unique, np.array(values)[::-1][places])
        return found


def _new_lines(path: Path, begin: int) -> tuple[str, int]:
    """Complete lines since a place, at most ``CHUNK`` bytes unless one line is longer.

    If the file is shorter than that now, as after a restart, from its start.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        begin = begin if begin <= size else 0
        file.seek(begin)
        data = file.read(CHUNK)
        if b"\n" not in data:
            data += file.read()
        whole = data.rfind(b"\n") + 1
        return data[:whole].decode("utf-8", errors="replace"), begin + whole


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not is_dict(found):
        raise ValueError(f"{text[:40]!r} is no JSON object")
    return found


def _numbers(fields: Mapping[str, Any]) -> dict[str, float]:
    return dict(_flat(fields, ""))


def _flat(fields: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in fields.items():
        if is_dict(value):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + name, value


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
