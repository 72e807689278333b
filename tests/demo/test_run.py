"""The whole demo: what it writes, what it shows, and what it claims on real images."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

import polyak
from polyak.demo.data import digits
from polyak.demo.in_torch import TorchLearner
from polyak.demo.options import Options
from polyak.demo.run import run, score, stop_on_interrupt
from polyak.demo.screen import next_commands
from polyak.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_on_fashion_mnist_the_average_has_the_lower_loss(fashion_mnist: Path, tmp_path: Path) -> None:
    """One seed: `experiments/tutorial` has five, and its report is what the pages refer to."""
    result = run(Options(data="fashion-mnist", root=fashion_mnist, epochs=2, out=tmp_path))
    raw, ema = result.summary.raw, result.summary.ema
    assert ema.train_loss < raw.train_loss
    assert ema.test_loss < raw.test_loss
    assert ema.last > 0.86, "a network that learned nothing would be at 0.10"


def test_over_five_seeds_of_the_digits_the_average_is_better_and_calmer(tmp_path: Path) -> None:
    """What `make demo` shows where no other images are installed, at its own defaults."""
    runs = [run(Options(data="digits", seed=seed, out=tmp_path / str(seed))).summary for seed in range(5)]
    assert sum(r.ema.test_loss < r.raw.test_loss for r in runs) >= 4
    assert sum(r.ema.last >= r.raw.last for r in runs) >= 4
    assert sum(r.ema.wobble < r.raw.wobble for r in runs) >= 4
    assert all(r.ema.last > 0.95 for r in runs)


def test_the_next_commands_work_on_what_the_demo_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options = Options(data="digits", epochs=4, out=Path("a run"))
    run(options)
    (tmp_path / "your_train.py").write_text((ROOT / "docs/tutorial.py").read_text())
    environment = {**os.environ, "PATH": warm_path, "COLUMNS": "90"}
    commands = [c for c in next_commands(options, Path("a run")) if not c.startswith("#")]
    assert [command.split()[1] for command in commands] == ["inspect", "sweep", "doctor"]
    shown = {}
    for command in commands:
        few = ["--points", "2", "--refine", "1"] if "sweep" in command else []
        done = subprocess.run(
            [*shlex.split(command), *few], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        shown[command.split()[1]] = done.stdout
    assert "weight of each training step" in shown["inspect"]
    assert "failed" not in shown["sweep"]
    best = polyak.load("a run/snapshots/sweep/best.safetensors")
    assert score(options, Path("a run/snapshots/sweep/best.safetensors")) > 0
    assert best.header.step == 92


def test_the_score_of_a_runs_average_is_its_last_loss(tmp_path: Path) -> None:
    options = Options(data="digits", epochs=1, out=tmp_path / "run")
    result = run(options)
    found = score(Options(data="digits"), tmp_path / "run/average.safetensors")
    assert found == pytest.approx(result.summary.ema.test_loss)


def test_what_is_written_is_what_happened(tmp_path: Path) -> None:
    shown: list[str] = []
    ticks: list[tuple[int, int]] = []
    options = Options(data="digits", epochs=2, out=tmp_path / "a" / "b")
    result = run(options, shown.append, lambda *tick: ticks.append(tick))
    assert result.folder == tmp_path / "a" / "b"
    assert result.files == [
        *("average.safetensors", "curves.png", "metrics.jsonl"),
        *("polyak-run.json", "report.html", "snapshots"),
    ]
    assert polyak.Archive(result.folder / "snapshots").steps[-1] == 46
    assert (result.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert result.curves["accuracy"][0][-1] == result.summary.raw.last

    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["loss", "loss", "loss", "epoch"] * 2
    assert lines[-1]["accuracy"] == result.summary.raw.last
    assert lines[-1]["ema_accuracy"] == result.summary.ema.last
    assert set(lines[0]["seconds"]) == {"train", "ema"}

    tensors = load_file(result.folder / "average.safetensors")
    learner = TorchLearner(Options())
    learner.model.load_state_dict(tensors)
    test = learner.to_device(digits().test)
    assert learner.evaluate(*test).accuracy == pytest.approx(lines[-1]["ema_accuracy"])
    assert polyak.load(result.folder / "average.safetensors").header.step == 46

    text = "\n".join(shown)
    assert "1,437 training and 360 test images" in text
    for line in lines:
        if line["kind"] == "loss":
            assert f"loss {line['loss']:.4f}  EMA loss {line['ema_loss']:.4f}" in text
        else:
            assert f"accuracy {line['accuracy']:.2%}  EMA accuracy {line['ema_accuracy']:.2%}" in text
    assert ticks == [(step, 46) for step in range(1, 47)]
    assert (result.steps, result.total) == (46, 46)


def test_each_run_without_a_name_gets_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [Options().make_folder() for _ in range(3)] == [Path(f"runs/demo-{n}") for n in (1, 2, 3)]


def test_a_finished_run_is_never_overwritten(tmp_path: Path) -> None:
    run(Options(data="digits", epochs=1, out=tmp_path))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        run(Options(data="digits", epochs=1, out=tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_an_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be made"):
        run(Options(data="digits", epochs=1, out=tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device"):
        run(Options(data="digits", device="toaster", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_first_ctrl_c_is_noted_the_second_is_pythons() -> None:
    before = signal.default_int_handler  # set here: a background job of a shell starts with SIGINT ignored
    outer = signal.signal(signal.SIGINT, before)
    with stop_on_interrupt() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, outer) is before
