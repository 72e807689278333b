"""A training that is killed in the middle and started again ends, bit by bit, as if it had never been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import assert_equal
from .resume_worker import CASES, STEPS, Run, saved


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process, killed after twelve steps of 23, and finished in another."""
    folder = tmp_path_factory.mktemp("resume")
    command = [sys.executable, "-m", "tests.paddle.resume_worker", str(folder)]
    where = {"cwd": Path(__file__).parents[2], "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "timeout": 120}
    first = subprocess.run([*command, "12"], check=False, **where)
    assert first.returncode == -signal.SIGKILL
    assert all(int(saved(folder / case)[-1].name) == 10 for case in CASES)
    subprocess.run(command, check=True, **where)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_continuing_equals_never_having_stopped(killed: Path, case: str) -> None:
    whole, resumed = Run(case), Run(case)
    for _ in range(STEPS):
        whole.step()
    resumed.load(killed / case / str(STEPS))
    expected, got = whole.ema.state_dict(), resumed.ema.state_dict()
    assert got.pop("run") != expected.pop("run")  # the run goes on under its first id
    assert_equal(got, expected)
    assert_equal(dict(resumed.layer.state_dict()), dict(whole.layer.state_dict()))
