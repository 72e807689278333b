"""Workers in PaddlePaddle beside workers in PyTorch, each in its own environment, on one server."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import polyak
from polyak.server import start

ROOT = Path(__file__).parents[2]
FIRST = {
    "0.weight": np.zeros((2, 1, 3), np.float32),
    "0.bias": np.zeros(2, np.float32),
    "1.weight": np.zeros(2, np.float32),
    "1.bias": np.zeros(2, np.float32),
}


def python_of(framework: str) -> str:
    """An interpreter that has the framework: this one, or that of the other environment."""
    if find_spec(framework):
        return sys.executable
    other = ROOT / (".venv-paddle" if framework == "paddle" else ".venv") / "bin" / "python"
    if not other.exists():
        pytest.skip(f"no environment with {framework}: make env, make env-paddle")
    return str(other)


def pushed(framework: str, address: str, token: str, name: str, value: float) -> str:
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    script = str(Path(__file__).with_name("pusher.py"))
    command = [python_of(framework), "-W", "ignore", script, framework, address, name, str(value)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_one_average_of_both_frameworks(address: str, token: str, name: str, folder: Path) -> None:
    assert python_of("torch") != python_of("paddle")
    with start(FIRST, polyak.Uniform(), folder=folder, name=name, shards=2):
        assert pushed("torch", address, token, name, 1.0) == "1 [1.0]"
        assert pushed("paddle", address, token, name, 4.0) == "2 [2.5]"
        assert pushed("torch", address, token, name, 4.0) == "3 [3.0]"
