"""Output of commands: lines, tables and progress bars. Text from files never controls the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Literal

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

# Controls (C0 with the newline, C1), line separators, characters that change the direction of text, and the
# lone surrogates in names of files that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Escape every character that is not printed as itself.

    A name in a checkpoint may contain a window title, a command that clears the screen, or a newline and a
    line that says "integrity verified".

    Examples:
        >>> print(printable("权重 \x1b[2J\nok"))
        权重 \x1b[2J\nok
    """
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def say(*lines: str) -> None:
    """Print lines on stdout."""
    for line in lines:
        print(printable(line), flush=True)


def complain(error: object) -> None:
    """Print an error on stderr, in one line."""
    print(printable(f"polyak: {error}"), file=sys.stderr)


def say_table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table on stdout; columns without a heading are text, the others numbers."""
    table = Table(title=title, title_justify="left", box=box.ASCII if ascii_only() else box.HEAVY_HEAD)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(markup=False, emoji=False).print(table)


def width() -> int:
    """Columns of the terminal."""
    return Console().width


def watched() -> bool:
    """Whether stderr is a terminal, on which ``progress`` draws its bar."""
    return Console(stderr=True).is_terminal


def ascii_only() -> bool:
    """Whether drawings and tables must be ASCII: by the encoding, or the terminal's type."""
    return not Console().encoding.startswith("utf") or os.environ.get("TERM") == "dumb"


class _PerMinute(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{60 * task.speed:.3g}/min")


@contextmanager
def progress(what: str, unit: Literal["bytes", "count"] = "bytes") -> Generator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal.

    Args:
        what: the text before the bar.
        unit: of the amounts.

    Yields:
        The function that moves the bar, called with the amount done and the total.
    """
    amounts = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), _PerMinute())
    )
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # otherwise output to a file would go to the terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        # What is counted takes seconds each, so every one is drawn; bytes come by the thousand.
        drawn = unit == "count"
        yield lambda done, total: bar.update(task, completed=done, total=total, refresh=drawn)
