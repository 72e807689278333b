"""Where the scripts are: Python files and notebooks, one by one or in folders."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from polyak._type_guards import is_dict, is_list

_SKIPPED = re.compile(r"\..+|__pycache__|node_modules|site-packages")
# %time, !pip, ?ema, ema?, a = !ls
_MAGIC = re.compile(r"^([ \t]*)(?:[%!?].*|\S+\?+|\S*[^=!<>\s]\s*=\s*[%!].*)$", re.MULTILINE)
_TIMED = re.compile(r"%%(time|timeit|capture|prun)\b.*")  # cell magics of which the rest is Python


class Source(NamedTuple):
    """Python text; of a notebook all code cells in a row, each with its number and its first line there."""

    text: str
    cells: tuple[tuple[int, int], ...] = ()

    def place(self, line: int) -> str:
        """A line as people find it: "12", in a notebook "cell 3:2"."""
        for number, first in reversed(self.cells):
            if line >= first:
                return f"cell {number}:{line - first + 1}"
        return str(line)


def read_source(path: str | os.PathLike[str]) -> Source:
    """The Python in a file; lines of a notebook that are IPython's own are blank.

    Raises:
        OSError, ValueError: it cannot be read, or is no notebook.
    """
    text = Path(path).read_text(encoding="utf-8")
    return _notebook(json.loads(text)) if os.fspath(path).endswith(".ipynb") else Source(text)


def _notebook(content: Any) -> Source:
    """Cells are counted from 1, those with text too, as editors and linters count them."""
    if not is_dict(content) or not is_list(content.get("cells")):
        raise ValueError("it is no notebook: it has no list of cells")
    lines: list[str] = []
    cells: list[tuple[int, int]] = []
    for number, cell in enumerate(content["cells"], 1):
        if cell["cell_type"] == "code":
            cells.append((number, len(lines) + 1))
            lines += _python("".join(cell["source"])).split("\n")
    return Source("\n".join(lines), tuple(cells))


def _python(cell: str) -> str:
    head, _, rest = cell.partition("\n")
    if head.startswith("%%"):
        return f"\n{_python(rest)}" if _TIMED.match(head) else "\n" * cell.count("\n")
    try:
        ast.parse(cell)  # so that a line of Python that begins with % is left alone
    except SyntaxError:
        return _MAGIC.sub(r"\1pass", cell)
    return cell


def find_scripts(path: str | os.PathLike[str]) -> list[Path]:
    """The Python files and notebooks in a folder and below; a file stands for itself.

    Hidden folders, virtual environments and installed packages are left out.

    Args:
        path: a folder or a file.

    Returns:
        Files, sorted within each folder.
    """
    return sorted(_below(Path(path))) if os.path.isdir(path) else [Path(path)]


def _below(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if _SKIPPED.fullmatch(path.name) or (path / "pyvenv.cfg").exists():
            continue
        if path.is_dir():
            yield from () if path.is_symlink() else _below(path)
        elif path.suffix in (".py", ".ipynb"):
            yield path
