"""The best average of a run: what is saved, what is not and why, and what a kill leaves."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from polyak import BestCheckpoint, CheckpointError, ConfigError, Constant, HalfLife, SwapError, Warmup

KILLER = Path(__file__).with_name("best_killer.py")


def trained(decay: Any = 0.5, steps: int = 20, run: str = "the run") -> polyak.EMA:
    """An EMA of a model that stands at its step's number since step 1."""
    model = nn.Linear(2, 1, bias=False)
    ema = polyak.EMA(model, decay)
    ema.run = run
    train(ema, steps)
    return ema


def train(ema: polyak.EMA, steps: int) -> None:
    for _ in range(steps):
        with torch.no_grad():
            ema.model.weight.fill_(ema.step + 1.0)  # pyright: ignore
        ema.update()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{path}.jsonl").read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best.safetensors"


@pytest.mark.parametrize(
    ("mode", "min_gain", "metrics", "saved"),
    [
        ("max", 0.0, [0.5, 0.5, 0.6, 0.4, 0.61], [1, 0, 1, 0, 1]),
        ("min", 0.0, [0.5, 0.5, 0.6, 0.4, 0.39], [1, 0, 0, 1, 1]),
        ("max", 0.1, [0.5, 0.55, 0.6, 0.61, 0.7], [1, 0, 0, 1, 0]),
        ("min", 0.1, [0.9, 0.85, 0.8, 0.79, 0.7], [1, 0, 0, 1, 0]),
        ("max", 0.0, [math.nan, -math.inf, math.inf, -5, math.nan, -4], [0, 0, 0, 1, 0, 1]),
    ],
)
def test_only_what_beats_the_best_is_saved(
    path: Path, mode: Any, min_gain: float, metrics: list[float], saved: list[int]
) -> None:
    ema = trained()
    best = BestCheckpoint(path, mode=mode, min_gain=min_gain)
    bests: list[float | None] = [None]
    for metric, expected in zip(metrics, saved, strict=True):
        train(ema, 1)
        before = path.read_bytes() if path.exists() else None
        assert best.consider(ema, torch.tensor(metric, dtype=torch.float64)) is bool(expected)
        assert (before == (path.read_bytes() if path.exists() else None)) is not bool(expected)
        bests.append(metric if expected else bests[-1])
        assert best.metric == bests[-1]
    assert best.metric == [m for m, s in zip(metrics, saved, strict=True) if s][-1]
    log = lines(path)
    assert [line["decision"] == "save" for line in log] == [bool(s) for s in saved]
    assert [line["best"] for line in log] == bests[:-1]
    assert [line["metric"] for line in log] == [m if math.isfinite(m) else None for m in metrics]
    assert [line["step"] for line in log] == list(range(21, 21 + len(metrics)))


def test_the_file_is_the_average_that_was_considered(path: Path) -> None:
    ema = trained({"short": Constant(0.1), "long": 0.5})
    best = BestCheckpoint(path)
    assert best.consider(ema, 1.0, track="long")
    average = polyak.load(path)
    assert average.header.track == "long"
    assert average.header.run == "the run"
    assert torch.equal(torch.from_numpy(average.tensors["weight"]), ema.tracks["long"].tensors["weight"])
    assert lines(path) == [
        {"run": "the run", "step": 20, "track": "long", "metric": 1.0, "best": None, "decision": "save",
         "reason": "the first", "file": best.decisions[0].file}
    ]  # fmt: skip
    assert best.consider(ema, 1.5)
    assert polyak.load(path).header.track == "short"


def test_nothing_is_saved_before_the_initial_weight_is_under_one_percent(path: Path) -> None:
    ema = trained(0.9, steps=0)
    best = BestCheckpoint(path)
    for _ in range(60):
        train(ema, 1)
        assert best.consider(ema, 1.0 + ema.step) is (0.9**ema.step < 0.01), ema.step
    first = next(line for line in lines(path) if line["decision"] == "save")
    assert first["step"] == math.ceil(math.log(0.01) / math.log(0.9)) == 44
    assert lines(path)[0]["reason"] == "90% of the weight rests on the initial parameters"
    ema.reset()
    assert not best.consider(ema, 1000.0)


def test_a_start_later_than_the_first_step_is_where_averaging_begins(path: Path) -> None:
    ema = polyak.EMA(nn.Linear(2, 1, bias=False), 0.9, start=50)
    train(ema, 80)
    best = BestCheckpoint(path)
    assert not best.consider(ema, 1.0)
    assert best.decisions[0].reason == "4% of the weight rests on the initial parameters"
    train(ema, 14)
    assert best.consider(ema, 1.0)


def test_after_a_step_of_ones_own(path: Path) -> None:
    ema = trained(0.999, steps=9)
    best = BestCheckpoint(path, after=10)
    assert not best.consider(ema, 1.0)
    assert lines(path)[0]["reason"] == "step 9 comes before step 10"
    train(ema, 1)
    assert best.consider(ema, 0.5)


def test_a_new_object_goes_on_with_the_record(path: Path) -> None:
    ema = trained()
    assert BestCheckpoint(path).consider(ema, 0.7)
    train(ema, 1)
    again = BestCheckpoint(path)
    assert again.metric == 0.7
    assert again.record is not None
    assert again.record.step == 20
    assert not BestCheckpoint(path).consider(ema, 0.7)
    assert BestCheckpoint(path).consider(ema, 0.8)
    assert [decision.metric for decision in again.decisions] == [0.7, 0.7, 0.8]


def test_the_same_average_measured_again_keeps_its_better_metric(path: Path) -> None:
    """Two saves of one step give the same bytes; the record is the later one, after a restart too."""
    ema = trained()
    best = BestCheckpoint(path)
    assert best.consider(ema, 0.5)
    assert best.consider(ema, 0.6)
    assert BestCheckpoint(path).metric == 0.6


def test_a_line_torn_by_a_kill_is_not_there_and_is_gone_with_the_next(path: Path) -> None:
    ema = trained()
    assert BestCheckpoint(path).consider(ema, 0.7)
    with Path(f"{path}.jsonl").open("a") as log:
        log.write('{"run": "the run", "step": 21, "track": "' + 300 * "a")
    again = BestCheckpoint(path)
    assert len(again.decisions) == 1
    assert again.metric == 0.7
    assert not again.consider(ema, 0.6)
    assert [line["metric"] for line in lines(path)] == [0.7, 0.6]


@pytest.mark.parametrize("line", ["{}", "[1]", "no JSON", '{"run": 1, "more": 2}'])
def test_a_damaged_line_is_named(path: Path, line: str) -> None:
    ema = trained()
    BestCheckpoint(path).consider(ema, 0.7)
    with Path(f"{path}.jsonl").open("a") as log:
        log.write(line + "\n")
    with pytest.raises(CheckpointError, match=r"best.safetensors.jsonl, line 2, is not a decision"):
        BestCheckpoint(path).consider(ema, 0.8)


def test_without_its_file_a_record_is_none(path: Path) -> None:
    ema = trained()
    BestCheckpoint(path).consider(ema, 0.9)
    path.unlink()
    best = BestCheckpoint(path)
    assert best.metric is None
    assert best.consider(ema, 0.1)
    assert BestCheckpoint(path).metric == 0.1


def test_a_file_the_log_does_not_know_is_never_overwritten(path: Path) -> None:
    ema = trained()
    ema.save(path)
    theirs = path.read_bytes()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"not a file that best.safetensors.jsonl lists.*Move it"):
            BestCheckpoint(path).consider(ema, 0.9)
    assert path.read_bytes() == theirs
    path.unlink()
    BestCheckpoint(path).consider(ema, 0.9)
    train(ema, 1)
    ema.save(path)
    with pytest.raises(CheckpointError, match="its metric is not known"):
        BestCheckpoint(path).consider(ema, 1.0)


def test_another_run_is_refused_by_name(path: Path) -> None:
    BestCheckpoint(path).consider(trained(), 0.1)
    with pytest.raises(CheckpointError, match="best of run the run, this EMA is of run another"):
        BestCheckpoint(path).consider(trained(run="another"), 0.9)
    assert polyak.load(path).header.run == "the run"
    assert len(lines(path)) == 1


def test_a_resumed_run_is_the_same_run(path: Path, tmp_path: Path) -> None:
    ema = trained()
    BestCheckpoint(path).consider(ema, 0.1)
    ema.save(tmp_path / "state", resumable=True)
    resumed = polyak.EMA(nn.Linear(2, 1, bias=False), 0.5)
    resumed.load(tmp_path / "state")
    assert BestCheckpoint(path).consider(resumed, 0.2)


def test_the_raw_weights_must_be_live_and_nothing_is_logged_before(path: Path) -> None:
    ema = trained()
    best = BestCheckpoint(path)
    with ema.average_parameters(), pytest.raises(SwapError, match="Leave the average_parameters"):
        best.consider(ema, 0.5)
    assert best.decisions == []
    assert best.consider(ema, 0.5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "most"}, "mode='most'"),
        ({"min_gain": -1}, "min_gain=-1"),
        ({"min_gain": math.nan}, "min_gain=nan"),
        ({"after": -1}, "after=-1"),
        ({"after": 1.5}, "after=1.5"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BestCheckpoint(path, **wrong)


def test_what_is_no_metric_or_no_track_is_refused(path: Path) -> None:
    ema, best = trained(), BestCheckpoint(path)
    for metric in ("much", None, torch.ones(2)):
        with pytest.raises(ConfigError, match="must be one number"):
            best.consider(ema, metric)  # pyright: ignore
    with pytest.raises(ConfigError, match="track='raw' is not one of 'average'"):
        best.consider(ema, 0.5, track="raw")
    assert not path.exists()
    assert best.decisions == []


@pytest.mark.parametrize("decay", [Constant(0.5), HalfLife(steps=1), Warmup(0.9)])
def test_any_schedule_can_be_considered(path: Path, decay: Any) -> None:
    assert BestCheckpoint(path).consider(trained(decay, steps=100), 0.5)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("moment", "metric"), [("save", 0.5), ("_begin_log", 0.5), ("_append", 0.5), ("_rename", 0.9)]
)
def test_after_a_kill_at_each_step_file_and_log_agree(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, metric: float
) -> None:
    """The decision is made once its line is whole: before it the old best stands, after it the new one."""
    ema, best = trained(), BestCheckpoint(path)
    best.consider(ema, 0.5)
    train(ema, 1)

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ema if moment == "save" else BestCheckpoint, moment, killed)
        with pytest.raises(Killed):
            best.consider(ema, 0.9)
    found = BestCheckpoint(path)
    assert found.metric == metric
    assert polyak.load(path).header.step == (21 if metric == 0.9 else 20)
    assert found.decisions[-1] == found.record
    assert not Path(f"{path}.new").exists()
    assert found.consider(ema, 0.95)


def test_a_full_disk_keeps_the_old_best_and_says_so(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema, best = trained(), BestCheckpoint(path)
    best.consider(ema, 0.5)
    log, sync = Path(f"{path}.jsonl"), os.fsync
    log_before = log.read_bytes()

    def full(file: int) -> None:
        if os.fstat(file).st_ino == log.stat().st_ino:
            raise OSError(28, "No space left on device")
        sync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"safetensors.jsonl cannot be written.*No space left"):
            best.consider(ema, 0.9)
    assert log.read_bytes() == log_before
    assert best.metric == BestCheckpoint(path).metric == 0.5
    assert polyak.load(path).header.step == 20
    assert sorted(tmp_path.iterdir()) == [path, log]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing/best.safetensors.*cannot be written"):
        BestCheckpoint(tmp_path / "missing/best.safetensors").consider(trained(), 0.5)


def test_the_log_is_there_before_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a power cut, which may take a new name away, takes not the log alone."""
    ema, seen = trained(), list[bool]()
    monkeypatch.setattr(ema, "save", lambda *_: seen.append(Path(f"{path}.jsonl").exists()))
    with pytest.raises(CheckpointError, match="cannot be opened"):
        BestCheckpoint(path).consider(ema, 0.5)
    assert seen == [True]


@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")
def test_a_process_killed_at_any_moment_leaves_file_and_log_in_agreement(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", KILLER, tmp_path, "60", "1"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["wrong"] == []
    assert answer["struck"]["file not in place"] > 0  # of 60, at random: on a busy machine few


def test_the_agreement_is_really_looked_at(tmp_path: Path, path: Path) -> None:
    """A file put back behind the log's back is found out."""
    ema, best = trained(), BestCheckpoint(path)
    best.consider(ema, 0.5)
    shutil.copy(path, tmp_path / "old")
    train(ema, 1)
    best.consider(ema, 0.9)
    shutil.copy(tmp_path / "old", path)
    assert BestCheckpoint(path).metric == 0.5
