"""The scripts of docs/server do what its page says."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import polyak

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "server"


def test_the_page_shows_every_script() -> None:
    for page in ("server.md", "server.zh.md"):
        text = (DOCS / page).read_text()
        assert [
            path.name for path in PAGE.glob("*.py") if f'--8<-- "docs/server/{path.name}"' not in text
        ] == []


def test_rounds_bring_the_loss_down(address: str) -> None:
    losses = runpy.run_path(str(PAGE / "rounds.py"))["losses"]
    assert all(one[-1] < one[0] / 10 for one in losses)


def test_an_evaluator_sees_the_last_version(address: str) -> None:
    names = runpy.run_path(str(PAGE / "evaluator.py"))
    assert names["average"].version == names["STEPS"] == names["average"].step
    assert polyak.load(f"{names['folder']}/best.safetensors").header.role == "average"
    assert names["best"] < 0.1


def test_a_reference_policy_is_as_of_the_version_that_made_the_batch(address: str) -> None:
    rewarded = runpy.run_path(str(PAGE / "reference_policy.py"))["rewarded"]
    assert sum(rewarded[-5:]) > sum(rewarded[:5])


def ray_free() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    command = ["python", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("end", [signal.SIGTERM])
def test_two_terminals(tmp_path: Path, end: signal.Signals, warm_path: str) -> None:
    """Serve, push from two workers, kill one, start it again, pull, evaluate, stop."""
    warm = ray_free() | {"PATH": warm_path}
    for script in ("first.py", "worker.py", "evaluate.py"):
        shutil.copy(PAGE / script, tmp_path)
    run(tmp_path, warm, "first.py")
    output = (tmp_path / "output").open("w")
    command = [
        "polyak",
        "serve",
        "first.pt",
        "--half-life",
        "50",
        "--folder",
        "avg",
        "--shards",
        "2",
        "--every",
        "1",
    ]
    server = subprocess.Popen([sys.executable, "-m", *command], cwd=tmp_path, env=ray_free(), stdout=output)
    try:
        address = _address(tmp_path / "output", server)
        killed = subprocess.Popen(["python", "worker.py", address, "one", "100000"], cwd=tmp_path, env=warm)
        assert "two: push 60," in run(tmp_path, warm, "worker.py", address, "two", "60")
        killed.kill()
        killed.wait()
        again = run(tmp_path, warm, "worker.py", address, "one", "50")
        assert int(again.split("push ")[1].split(",")[0]) >= 50
        assert "SharedAverage(version" in run(tmp_path, warm, "evaluate.py", address)
        server.send_signal(end)
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        server.wait()
        output.close()
    said = (tmp_path / "output").read_text()
    assert "token file  avg/token" in said
    assert "workers; staleness" in said
    last = polyak.load(tmp_path / "avg" / "average.safetensors")
    assert f"at step {last.header.step}\n" in said
    assert last.header.decay == polyak.HalfLife(steps=50)
    assert torch.from_numpy(last.tensors["weight"]).isfinite().all()


def _address(output: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        lines = output.read_text().splitlines()
        if any(line.startswith("Ctrl-C") for line in lines):
            return lines[0].split()[1]
        time.sleep(0.2)
    raise AssertionError(f"the server did not start: {output.read_text()}")
