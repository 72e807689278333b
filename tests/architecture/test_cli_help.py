"""Every help text fits the smallest screen anyone has: 80 columns, 24 lines."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HELP = "import sys; sys.argv[0] = 'polyak'; from polyak.cli import main; main()"


def too_big(text: str, lines: int = 24, columns: int = 80) -> list[str]:
    """Lines that do not fit the screen."""
    rows = text.rstrip().splitlines()
    return [*rows[lines:], *[row for row in rows if len(row) > columns]]


def shown(*arguments: str) -> str:
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-c", HELP, *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        *[
            (c,)
            for c in (
                "average",
                "bench",
                "convert",
                "demo",
                "doctor",
                "gate",
                "inspect",
                "sweep",
                "synthesize",
            )
        ],
    ],
)
def test_help_fits_a_screen(arguments: tuple[str, ...]) -> None:
    text = shown(*arguments)
    assert "Usage: polyak" in text
    # A command with many options may scroll, but never wrap.
    assert too_big(text, lines=24 if not arguments else 48) == []


def test_what_does_not_fit_is_seen() -> None:
    assert too_big("x\n" * 25) == ["x"]
    assert too_big("x" * 81) == ["x" * 81]
