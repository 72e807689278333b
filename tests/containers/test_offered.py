"""Whether an image's packages can be had, asked of real pip and a folder that stands for the indexes.

pip reads the names of files only, as it reads an index's pages, so these are empty.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.images import ROOT

TORCH = "torch-2.13.0-py3-none-any.whl"
CPU = "torch-2.13.0+cpu-py3-none-any.whl"
PADDLE = "paddlepaddle-3.3.0-py3-none-any.whl"
CUBLAS = "nvidia_cublas-13.1-py3-none-any.whl"
CUDNN = "nvidia_cudnn_cu13-9.20-py3-none-any.whl"
LOCK = """\
nvidia-cublas==13.1 ; sys_platform == 'linux'
nvidia-cudnn-cu13==9.20 ; (platform_machine == 'aarch64') and sys_platform == 'linux'
nvidia-ml-py==13.6
"""


@pytest.mark.parametrize(
    ("flavour", "requirement", "files", "words"),
    [
        ("torch-cpu", "torch==2.13.0+cpu", (TORCH, CPU), ""),
        ("torch-cpu", "torch==2.13.0+cpu", (TORCH,), "no package index given to pip has torch==2.13.0+cpu"),
        ("torch-cuda", "torch==2.13.0", (TORCH, CUBLAS, CUDNN), ""),
        ("torch-cuda", "torch==2.13.0", (TORCH, CUBLAS), "given to pip has nvidia-cudnn-cu13==9.20. Set"),
        ("torch-cuda", "torch==2.13.0", (TORCH, CPU, CUBLAS, CUDNN), "2.13.0+cpu, which is without CUDA"),
        ("torch-cuda", "torch==2.13.0", ("torch-2.13.0+cu126-py3-none-any.whl",), ""),
        ("torch-cuda", "torch==2.13.0", ("torch-2.13.0.1-py3-none-any.whl",), "has torch==2.13.0 for"),
        ("torch-cuda", "torch==2.13.0", ("torch-2.13.0-cp33-cp33-win32.whl",), "for this machine and Python"),
        ("paddle-gpu", "paddlepaddle-gpu==3.3.0", (PADDLE,), "has paddlepaddle-gpu==3.3.0 for"),
    ],
)
def test_what_cannot_be_had_is_named_before_it_is_fetched(
    flavour: str, requirement: str, files: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)
    for name in files:
        (tmp_path / name).touch()
    done = subprocess.run(
        [sys.executable, ROOT / "containers/offered.py", flavour, requirement, tmp_path / "lock.txt"],
        env={
            "PATH": os.environ["PATH"],
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if words else 0), done.stderr
    assert words in done.stderr
    assert ("Set WHEELS" in done.stderr) == bool(words)


def test_the_lock_is_read() -> None:
    """A lock written another way would be one in which no package of CUDA is missing."""
    locked = runpy.run_path(str(ROOT / "containers/offered.py"))["LOCKED_CUDA"]
    names = [found.partition("==")[0] for found in locked.findall((ROOT / "constraints.txt").read_text())]
    assert len(names) > 10
    assert "nvidia-cudnn-cu13" in names
    assert "nvidia-ml-py" not in names, "nothing of torch's"
