"""What comes from a file reaches the terminal as text, and never as commands to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import TextIO

# Controls (C0 with the newline, C1), line separators, what turns the direction of text round, and the lone
# surrogates in names of files that are no UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A line with every character escaped that would do something else than appear.

    A name in a checkpoint may hold anything: a title for the window, an order to clear the screen, a newline
    and a line that says "integrity verified".

    Examples:
        >>> print(printable("权重 \x1b[2J\nok"))
        权重 \x1b[2J\nok
    """
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def say(*lines: str) -> None:
    """Print lines on stdout."""
    _print(lines, sys.stdout)


def complain(error: object) -> None:
    """Print an error on stderr, in one line."""
    _print([f"polyak: {error}"], sys.stderr)


def _print(lines: Iterable[str], stream: TextIO) -> None:
    for line in lines:
        print(printable(line), file=stream)
