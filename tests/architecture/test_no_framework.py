"""`import polyak` is cheap: no framework, no plotting, nothing a plain install lacks."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "paddle", "jax", "tensorflow", "sklearn", "pooch", "matplotlib", "scipy", "typer", "rich")


def loaded_by(code: str) -> set[str]:
    """Heavy packages that a fresh process holds after running the code."""
    code += f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "code",
    [
        "import polyak",
        "from polyak import Profile, load, compose; dir(__import__('polyak'))",
        "import polyak.schedules, polyak.reference, polyak._foreign.open_any, polyak.archive.archive",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_command_line_loads_no_framework() -> None:
    assert loaded_by("import polyak.cli") & {"torch", "sklearn", "pooch", "scipy"} == set()


def test_a_heavy_import_is_seen() -> None:
    assert "scipy" in loaded_by("import scipy")
