"""`polyak average`: what it writes, what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from polyak import ConfigError, HalfLife, Profile
from polyak.cli.average import Options
from polyak.schedules import solve
from tests.command_line import POLYAK, Done, polyak, polyak_process

STEPS = [10, 20, 40]


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three checkpoints whose weights are the steps they were written at."""
    for step in STEPS:
        tensors = {"w": np.full(50, step, np.float32), "n": np.array(step)}
        save_file(tensors, tmp_path / f"step-{step}.safetensors")
    return [str(tmp_path / f"step-{step}.safetensors") for step in STEPS]


def run(*arguments: str) -> Done:
    return polyak("average", *arguments)


@pytest.mark.slow
def test_as_a_person_runs_it(paths: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "o.safetensors")
    shown = polyak_process("average", *paths, "-o", out, "--weights", "1,1,2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == (
        f"{'file':<{len(paths[0])}}  step            weight\n"
        f"{paths[0]}  10 (file name)    0.25\n"
        f"{paths[1]}  20 (file name)    0.25\n"
        f"{paths[2]}  40 (file name)     0.5\n"
        f"wrote {out}: 1 averaged; 1 copied from {paths[-1]}\n"
    )
    made = load_file(out)
    assert np.all(made["w"] == 27.5)
    assert made["n"] == 40


def test_json_is_all_that_is_printed(paths: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "o.safetensors")
    shown = run(*paths, "-o", out, "--half-life", "8", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    weights = solve(
        [Profile.raw(step) for step in STEPS], Profile.from_decay(HalfLife(steps=8), 40)
    ).coefficients
    assert json.loads(shown.stdout) == {
        "out": out,
        "step": 40,
        "run": "",
        "newest": paths[-1],
        "files": [
            {"file": path, "role": "unknown", "step": step, "source": "file name", "weight": weight}
            for path, step, weight in zip(paths, STEPS, weights.tolist(), strict=True)
        ],
        "averaged": ["w"],
        "copied": ["n"],
        "weights": weights.tolist(),
    }
    assert shown.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--weights", "1,-2,1"], "weights=[1.0, -2.0, 1.0] sum to 0"),
        (["--recency", "0"], "Recency(steps=0.0): must be a positive number of training steps."),
        (["--weights", "a,b"], "--weights a,b: must be uniform, or numbers like 0.2,0.3,0.5."),
        (["--decay", "0.9", "--weights", "uniform"], "--weights and --decay: give one of these."),
        (["missing-50.safetensors"], "missing-50.safetensors cannot be opened"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    extra: list[str], words: str, paths: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "o.safetensors"
    shown = run(*paths, "-o", str(out), *extra, "--json")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("polyak: ")
    assert shown.stderr.count("\n") == 1
    assert words in shown.stderr
    assert not out.exists()


def test_no_place_to_write_to_is_a_usage_error(paths: list[str]) -> None:
    shown = run(*paths)
    assert shown.returncode == 2
    assert "--out" in shown.stderr


@pytest.mark.parametrize(
    ("extra", "dtype", "value"),
    [
        ([], np.float32, 70 / 3),
        (["--weights", "uniform"], np.float32, 70 / 3),
        (["--dtype", "float16"], np.float16, 70 / 3),
        (["--accumulate", "float64", "--dtype", "float64"], np.float64, 70 / 3),
        (["--decay", "0"], np.float32, 40),
        (["--decay", "1"], np.float32, 10),
        (["--recency", "10"], np.float32, (10 / 8 + 20 / 4 + 40) / (1 / 8 + 1 / 4 + 1)),
        (["--shape", "linear"], np.float32, 10 + 10 * 5 / 6 + 20 * 2 / 6),
    ],
)
def test_options_reach_the_result(
    extra: list[str], dtype: type, value: float, paths: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "o.safetensors"
    assert run(*paths, "-o", str(out), *extra).returncode == 0
    made = load_file(out)["w"]
    assert made.dtype == dtype
    np.testing.assert_allclose(made, value, rtol=float(np.finfo(dtype).eps))


def test_shards(paths: list[str], tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    assert run(*paths, "-o", str(out), "--max-shard-size", "0.1KB").returncode == 0
    index = json.loads((tmp_path / "o.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2
    assert not out.exists()


@pytest.mark.parametrize("arguments", [("0.5,0.5", 3.0, None), (None, 3.0, 0.9), ("uniform", None, 0.5)])
def test_one_way_to_say_what_each_weighs(
    arguments: tuple[str | None, float | None, float | None],
) -> None:
    with pytest.raises(ConfigError, match="give one of these"):
        Options(*arguments).weighting()


@pytest.mark.slow
def test_a_person_sees_how_far_it_is(paths: list[str], tmp_path: Path) -> None:
    """On a terminal of its own there is a bar with rate and time left, on stderr; stdout stays clean."""
    pty = pytest.importorskip("pty")
    big = {"w": np.zeros(30_000_000, np.float32)}
    save_file(big, tmp_path / "big.safetensors")
    leader, follower = pty.openpty()
    line = [*POLYAK, "average", *[str(tmp_path / "big.safetensors")] * 3]
    line += ["-o", str(tmp_path / "o.safetensors"), "--json"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                some = os.read(leader, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not some:
                break
            seen += some
        stdout = process.stdout.read() if process.stdout else b""
    os.close(leader)
    assert process.returncode == 0
    assert json.loads(stdout)["averaged"] == ["w"]
    assert b"averaging" in seen
    assert b"MB" in seen
    assert b"/s" in seen
