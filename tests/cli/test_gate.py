"""`polyak gate` as a release pipeline runs it: what it prints and its exit status."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import Done, polyak, polyak_process

# The files hold their metric; "crash" among them is no number of the command's.
SHOW = shlex.join([sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", "{weights}"])


def gate(folder: Path, new: str | None, best: str | None, *more: str, command: str = SHOW) -> Done:
    """Compare two files with this inside; None is no file."""
    for name, text in (("new", new), ("best", best)):
        if text is not None:
            (folder / name).write_text(text)
    return polyak("gate", folder / "new", folder / "best", "--eval", command, *more)


@pytest.mark.parametrize(
    ("new", "best", "more", "status"),
    [
        ("0.94", "0.93", (), 0),
        ("0.93", "0.93", (), 1),
        ("0.92", "0.93", (), 1),
        ("0.92", "0.93", ("--mode", "min"), 0),
        ("0.93", "0.93", ("--mode", "min"), 1),
        ("0.94", "0.93", ("--min-gain", "0.01"), 0),
        ("0.9399", "0.93", ("--min-gain", "0.01"), 1),
        ("0.93", "0.94", ("--min-gain", "0.01", "--mode", "min"), 0),
        ("0.9301", "0.94", ("--min-gain", "0.01", "--mode", "min"), 1),
        ("-1", "-2", ("--min-gain", "1"), 0),
    ],
)
def test_only_enough_of_a_gain_passes(
    tmp_path: Path, new: str, best: str, more: tuple[str, ...], status: int
) -> None:
    done = gate(tmp_path, new, best, *more)
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    assert ("\npassed" in done.stdout) is (status == 0)
    assert ("did not pass" in done.stdout) is (status == 1)
    assert (tmp_path / "best").read_text() == best


def test_both_metrics_and_the_gain_are_shown(tmp_path: Path) -> None:
    assert gate(tmp_path, "0.94", "0.93", "--min-gain", "0.005").stdout == (
        f"new   0.94         {tmp_path / 'new'}\n"
        f"best  0.93         {tmp_path / 'best'}\n"
        "gain  +0.01        max, required at least 0.005\n"
        "passed\n"
    )


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    done = gate(tmp_path, "0.25", "0.5", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "new": 0.25, "best": 0.5, "gain": -0.25, "passed": False, "promoted": False,
        "min_gain": 0.0, "mode": "max", "repeats": 1,
        "against": [{
            "file": str(tmp_path / "best"), "metric": 0.5, "gain": -0.25, "lower_bound": -0.25,
            "passed": False,
        }],
    }  # fmt: skip
    assert done.stderr == ""


@pytest.mark.parametrize(("new", "best", "who"), [("crash", "0.5", "new"), ("0.5", "nan", "best")])
def test_what_cannot_be_evaluated_is_neither_passed_nor_failed(
    tmp_path: Path, new: str, best: str, who: str
) -> None:
    done = gate(tmp_path, new, best, "--promote", "--json")
    assert done.returncode == 2
    said = json.loads(done.stdout)
    assert said["passed"] is False
    assert said["error"].startswith(f"{tmp_path / who} could not be evaluated: ")
    assert done.stderr == f"polyak: {said['error']}\n"
    assert (tmp_path / "best").read_text() == best


@pytest.mark.slow
def test_a_command_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    hang = shlex.join([sys.executable, "-c", "import time; time.sleep(300)", "{weights}"])
    done = gate(tmp_path, "1", "0", "--timeout", "1", command=hang)
    assert done.returncode == 2
    assert "killed after 1 seconds" in done.stderr
    assert done.stdout == ""


def test_the_command_gets_no_input(tmp_path: Path) -> None:
    """Nothing of what the pipeline itself is fed."""
    count = shlex.join([sys.executable, "-c", "import sys; print(len(sys.stdin.read()))", "{weights}"])
    for name in ("new", "best"):
        (tmp_path / name).write_text("1")
    line = ["gate", tmp_path / "new", tmp_path / "best", "--eval", count, "--json"]
    said = polyak_process(*line, input="an answer\n").stdout
    assert json.loads(said)["new"] == 0


def test_a_first_release_passes_only_when_it_may(tmp_path: Path) -> None:
    refused = gate(tmp_path, "0.5", None)
    assert refused.returncode == 2
    assert "best does not exist; for a first release give --allow-missing" in refused.stderr
    passed = gate(tmp_path, "0.5", None, "--allow-missing")
    assert passed.returncode == 0
    assert "best  none yet\npassed: there is nothing to beat\n" in passed.stdout
    assert gate(tmp_path, "crash", None, "--allow-missing").returncode == 2
    said = json.loads(gate(tmp_path, "0.5", None, "--allow-missing", "--json").stdout)
    assert (said["best"], said["gain"], said["passed"]) == (None, None, True)
    assert gate(tmp_path, "0.4", "0.5", "--allow-missing").returncode == 1


@pytest.mark.parametrize("best", ["0.93", None])
def test_what_passes_is_promoted(tmp_path: Path, best: str | None) -> None:
    done = gate(tmp_path, "0.94", best, "--promote", "--allow-missing")
    assert done.returncode == 0
    assert (tmp_path / "best").read_text() == "0.94"
    assert f"copied {tmp_path / 'new'} to {tmp_path / 'best'}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "new"]


def test_what_does_not_pass_is_not_promoted(tmp_path: Path) -> None:
    assert gate(tmp_path, "0.92", "0.93", "--promote").returncode == 1
    assert (tmp_path / "best").read_text() == "0.93"


def test_a_promotion_that_fails_is_no_pass(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk, for root too."""
    if os.name != "posix":
        pytest.skip("resource limits")
    big = "0.94" + "\n" * 100_000
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
    limited = [sys.executable, "-c", code + "from polyak.cli import main; main()"]
    (tmp_path / "new").write_text(big)
    (tmp_path / "best").write_text("0.93")
    show = shlex.join([sys.executable, "-c", "import sys; print(open(sys.argv[1]).read(4))", "{weights}"])
    files = [str(tmp_path / "new"), str(tmp_path / "best")]
    line = [*limited, "gate", *files, "--eval", show, "--promote"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert (tmp_path / "best").read_text() == "0.93"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "new"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--min-gain", "-1"], "min_gain=-1"),
        (["--min-gain", "nan"], "min_gain=nan"),
        (["--timeout", "0"], "timeout=0"),
        (["--eval", "python eval.py"], "has no {weights}"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, more: list[str], words: str) -> None:
    done = gate(tmp_path, "1", "0", *more)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_files_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    missing = gate(tmp_path, None, "0.5")
    assert missing.returncode == 2
    assert "new does not exist" in missing.stderr
    (tmp_path / "new").symlink_to(tmp_path / "best")
    assert "are one file" in gate(tmp_path, None, "0.5").stderr
    (tmp_path / "new").unlink()
    (tmp_path / "new").mkdir()
    folder = gate(tmp_path, None, "0.5", "--promote")
    assert folder.returncode == 2
    assert "only a single file is promoted" in folder.stderr
    count = shlex.join([sys.executable, "-c", "import os, sys; print(len(sys.argv[1]))", "{weights}"])
    assert gate(tmp_path, None, "0.5", "--mode", "min", command=count).returncode == 0


def against(folder: Path, new: str, *best: str, more: tuple[str, ...] = ()) -> Done:
    """Judge a file against several."""
    (folder / "new").write_text(new)
    files = [folder / f"best{i}" for i in range(len(best))]
    for file, text in zip(files, best, strict=True):
        file.write_text(text)
    return polyak("gate", folder / "new", *files, "--eval", SHOW, *more)


def test_every_opponent_must_be_beaten(tmp_path: Path) -> None:
    done = against(tmp_path, "0.9", "0.8", "0.85")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("best  ") == done.stdout.count("gain  ") == 2
    done = against(tmp_path, "0.9", "0.8", "0.95", "0.7", more=("--json",))
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["best"], said["gain"]) == (0.95, -0.05)
    assert [one["passed"] for one in said["against"]] == [True, False, True]


def test_of_several_files_none_is_promoted_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    refused = against(tmp_path, "0.9", "0.8", "0.7", more=("--promote",))
    assert refused.returncode == 2
    assert "promote replaces one file, and there are 2 to beat" in refused.stderr
    (tmp_path / "best0").unlink()
    line = ["gate", *(tmp_path / name for name in ("new", "best0", "best1")), "--eval", SHOW]
    assert polyak(*line).returncode == 2
    done = polyak(*line, "--allow-missing", "--json")
    assert done.returncode == 0
    assert [one["metric"] for one in json.loads(done.stdout)["against"]] == [0.7]


# A metric whose noise depends on the repeat alone, as that of a seeded evaluation does.
SEEDED = """
import random, sys
path, repeat = sys.argv[1:]
shared = random.Random(int(repeat)).gauss(0, 1)
own = random.Random(path + repeat).gauss(0, 0.01)
print(float(open(path).read()) + shared + own)
"""


def test_repeats_are_paired_so_that_noise_they_share_cancels(tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", SEEDED, "{weights}", "{repeat}"])
    done = gate(tmp_path, "0.95", "0.9", "--repeats", "5", command=command)
    assert done.returncode == 0, done.stdout
    assert "with 95 % certainty +0.0" in done.stdout
    said = json.loads(gate(tmp_path, "0.95", "0.9", "--repeats", "5", "--json", command=command).stdout)
    [one] = said["against"]
    assert said["repeats"] == 5
    assert 0 < one["lower_bound"] < one["gain"] < 0.1
    more = ("--repeats", "5", "--min-gain", str(one["gain"]))
    assert gate(tmp_path, "0.95", "0.9", *more, command=command).returncode == 1


def test_a_gain_within_the_noise_does_not_pass(tmp_path: Path) -> None:
    """Its mean is positive, and so is the single evaluation."""
    noise = "import sys; print(float(open(sys.argv[1]).read()) * [1, -1, 1][int(sys.argv[2])])"
    command = shlex.join([sys.executable, "-c", noise, "{weights}", "{repeat}"])
    assert gate(tmp_path, "1", "0", command=command).returncode == 0
    done = gate(tmp_path, "1", "0", "--repeats", "3", command=command)
    assert done.returncode == 1
    assert "gain  +0.33333333" in done.stdout
    assert "did not pass" in done.stdout
