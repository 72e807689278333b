"""Importing polyak is cheap: no framework, no plotting, no room it does not need.

What is counted is modules, not seconds; ``benchmarks/imports.py`` measures those.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "paddle", "jax", "tensorflow", "sklearn", "pooch", "matplotlib", "scipy", "typer", "rich")
# Of the standard library, those that cost as much as several rooms of polyak.
LONG = ("email", "html", "asyncio", "unittest", "multiprocessing", "importlib.metadata")


def loaded_by(code: str, before: str = "pass") -> set[str]:
    """Modules that the code adds to those a fresh process had loaded before it."""
    script = f"{before}\nimport sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def heavy(code: str) -> set[str]:
    return loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import polyak",
        "from polyak import Profile, load, compose; dir(__import__('polyak'))",
        "import polyak.schedules, polyak.reference, polyak._foreign.open_any, polyak.archive.archive",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert heavy(code) == set()


def test_the_front_door_loads_nothing_but_itself() -> None:
    """Every name is imported at its first use."""
    loaded = loaded_by("import polyak")
    assert {name for name in loaded if name.startswith("polyak")} == {"polyak"}
    assert not loaded & {"numpy", *LONG}


def test_a_name_loads_its_room_alone() -> None:
    loaded = loaded_by("import polyak; polyak.Constant(0.9)", before="import numpy")
    assert {name.split(".")[1] for name in loaded if name.startswith("polyak.")} == {"errors", "schedules"}
    assert not loaded & set(LONG)


def test_polyak_torch_loads_what_an_ema_needs() -> None:
    """No reader of other formats, no archive, and of Triton nothing until a tensor is on a GPU."""
    pytest.importorskip("torch")
    loaded = loaded_by("import polyak.torch", before="import torch")
    rooms = {name.split(".")[1] for name in loaded if name.startswith("polyak.")}
    assert rooms == {"_core", "_dtypes", "_files", "_kernel", "_wrappers", "errors", "schedules", "torch"}
    # torch imports NumPy itself; numpy.typing is a module of a few names.
    others = {name.split(".")[0] for name in loaded} - {"polyak", "numpy", "ml_dtypes"}
    assert others <= sys.stdlib_module_names
    assert not loaded & set(LONG)
    assert len(loaded) < 120


def test_the_command_line_loads_no_framework() -> None:
    assert heavy("import polyak.cli") & {"torch", "sklearn", "pooch", "scipy"} == set()


def test_a_heavy_import_is_seen() -> None:
    assert "scipy" in heavy("import scipy")
