"""`make gpu` where there is no GPU, and what it makes of parts that fail, are late or cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("No GPU here: nothing was run")
    assert list(tmp_path.iterdir()) == []


def test_every_part_is_there_to_be_run(tmp_path: Path) -> None:
    for part in gpu.parts(tmp_path, tmp_path).values():
        modules = [word for word in part.command if word.startswith(("benchmarks.", "tests."))]
        assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules)
    assert all((ROOT / path).exists() for path in gpu.TESTS)


def test_how_a_part_ended_is_told_apart() -> None:
    python = sys.executable
    ended = [
        gpu.ran(gpu.Part("", (python, "-c", "print('fine')")), 60)[:2],
        gpu.ran(gpu.Part("", (python, "-c", "print('oh'); raise SystemExit(3)")), 60)[:2],
        gpu.ran(gpu.Part("", (python, "-c", "import time; time.sleep(60)")), 0.5)[0],
        gpu.ran(gpu.Part("", ("no-such-program",), "no-such-program"), 60)[0],
    ]
    assert ended == [
        ("passed", "fine\n"),
        ("failed: exit status 3", "oh\n"),
        "failed: not done after 0 s",
        "left out: no-such-program is not installed",
    ]
