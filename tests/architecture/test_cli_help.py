"""Every help text fits the smallest screen anyone has: 80 columns, 24 lines."""

from __future__ import annotations

import pytest

from polyak.cli import EXAMPLES
from tests.command_line import polyak


def too_big(text: str, lines: int = 24, columns: int = 80) -> list[str]:
    """Lines that do not fit the screen."""
    rows = text.rstrip().splitlines()
    return [*rows[lines:], *[row for row in rows if len(row) > columns]]


@pytest.mark.parametrize("arguments", [(), *[(command.__name__,) for command in EXAMPLES]])
def test_help_fits_a_screen(arguments: tuple[str, ...]) -> None:
    text = polyak(*arguments, "--help", TERM="dumb").stdout
    assert "Usage: polyak" in text
    # A command with many options may scroll, but never wrap.
    assert too_big(text, lines=24 if not arguments else 48) == []


def test_what_does_not_fit_is_seen() -> None:
    assert too_big("x\n" * 25) == ["x"]
    assert too_big("x" * 81) == ["x" * 81]
