"""A saver that is killed leaves a complete file: at any moment, and at every line of the code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.crash_worker import KINDS, NAME

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")

ROOT = Path(__file__).parents[2]


def run(how: str, kind: str, folder: Path, *rest: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.checkpoints.crash_worker", how, kind, folder, *rest]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def assert_nothing_but(kind: str, save: int, files: list[str]) -> None:
    if KINDS[kind](save):
        assert len(files) == 3
        assert f"{NAME}.index.json" in files
    else:
        assert files == [NAME]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_200_random_moments_a_complete_file_is_there(in_memory: Path, kind: str) -> None:
    result = run("random", kind, in_memory, 200, 7)
    deaths = result["deaths"]
    assert len(deaths) == 201
    assert deaths == sorted(deaths)  # never an older save than one that was there before
    assert deaths[-1] > 150  # they did save meanwhile
    assert result["litter"] > 20  # and were killed while they wrote
    assert result["found"] == result["last"]
    assert_nothing_but(kind, result["last"], result["files"])


# An interrupt runs the same cleaning up whichever kind of file was there before.
@pytest.mark.parametrize(
    ("how", "kind"),
    [*(("kill", kind) for kind in KINDS), ("interrupt", "file over set"), ("interrupt", "set over file")],
)
def test_ended_before_each_line_the_old_or_the_new_file_is_there(
    in_memory: Path, how: str, kind: str
) -> None:
    """By SIGKILL, and by Ctrl-C, when a line first and when it last runs; the next save sweeps the rest."""
    result = run(how, kind, in_memory)
    assert set(result["seen"]) == {0, 1}
    assert result["ended"] > 200
    assert result["ended"] > 0.9 * len(result["seen"])
    assert len(result["shapes"]) == 1
    assert_nothing_but(kind, 0, result["files"])
    if how == "interrupt":  # what is still alive cleans up after itself, but for the first and last lines
        assert result["litter"] < 30
