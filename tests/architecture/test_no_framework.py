"""Importing polyak is cheap: no framework, no plotting, no room it does not need.

What is counted is modules, not seconds; ``benchmarks/imports.py`` measures those.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

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
    """Every name is imported at its first use, by the one module that comes along."""
    loaded = loaded_by("import polyak")
    assert {name for name in loaded if name.startswith("polyak")} == {"polyak", "polyak._lazy"}
    assert not loaded & {"numpy", *LONG}


def test_a_name_loads_its_room_alone() -> None:
    loaded = loaded_by("import polyak; polyak.Constant(0.9)", before="import numpy")
    assert {name.split(".")[1] for name in loaded if name.startswith("polyak.")} == {
        "_lazy",
        "errors",
        "schedules",
    }
    assert not loaded & set(LONG)


# What an update does not need, and each takes a share of the import's time; prefixes of modules' names.
LATER = (
    "polyak._core.agreement",
    "polyak._core.batchnorm",
    "polyak._core.capture",
    "polyak._core.load_state",
    "polyak._core.save",
    "polyak._core.sharded_files",
    "polyak._core.state_dict",
    "polyak._dtypes",
    "polyak._files",
    "polyak._foreign",
    "polyak.archive",
    "polyak.report",
    "polyak.schedules.half_life",
    "polyak.schedules.pointwise",
    "polyak.schedules.posthoc",
    "polyak.schedules.power",
    "polyak.schedules.scaled",
    "polyak.schedules.schedules",
    "polyak.schedules.theory",
    "polyak.torch._engines.triton",
    "polyak.torch._sharding.agree",
    "polyak.torch._sharding.layout",
    "polyak.torch._sharding.stream",
    "polyak.torch.batchnorm",
    "polyak.torch.teacher",
    "ml_dtypes",
    "numpy.typing",
)
UPDATE = """
import torch, polyak
ema = polyak.EMA(torch.nn.Linear(2, 1))
ema.update()
with ema.average_parameters():
    ema.metrics()
"""


def of_later(code: str) -> set[str]:
    """Those of ``LATER`` that the code loads."""
    loaded = loaded_by(code, before="import torch")
    return {later for later in LATER if any(name.startswith(later) for name in loaded)}


def test_polyak_torch_loads_what_an_ema_needs() -> None:
    """Nothing of files and processes, and of Triton nothing until a tensor is on a GPU."""
    pytest.importorskip("torch")
    loaded = loaded_by("import polyak.torch", before="import torch")
    rooms = {name.split(".")[1] for name in loaded if name.startswith("polyak.")}
    assert rooms == {"_core", "_kernel", "_lazy", "_wrappers", "errors", "schedules", "torch"}
    assert {name.split(".")[0] for name in loaded} - {"polyak"} <= sys.stdlib_module_names
    assert not loaded & set(LONG)
    assert len(loaded) < 80


def test_an_update_loads_nothing_more() -> None:
    """So the time is not merely put off until the first step."""
    pytest.importorskip("torch")
    assert of_later(UPDATE) == set()


def test_what_is_kept_for_later_exists_and_is_seen() -> None:
    """A name that no module has any more would be absent for ever."""
    pytest.importorskip("torch")
    assert [later for later in LATER if find_spec(later) is None] == []
    resumed = of_later("import torch, polyak; polyak.EMA(torch.nn.Linear(2, 1)).state_dict()")
    assert {"polyak._core.save", "polyak._core.state_dict", "polyak._dtypes", "polyak._files"} <= resumed


def test_the_command_line_loads_no_framework() -> None:
    assert heavy("import polyak.cli") & {"torch", "sklearn", "pooch", "scipy"} == set()


def test_a_heavy_import_is_seen() -> None:
    assert "scipy" in heavy("import scipy")
