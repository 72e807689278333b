"""Following runs: what changed is read once, what did not is not opened, and a restart is followed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from polyak.errors import ConfigError
from polyak.report.facts import Run
from polyak.report.live import Live
from tests.report.opened import opened
from tests.report.runs import write_log, write_run, write_sweep


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def line(step: int, loss: float) -> str:
    return json.dumps({"step": step, "loss": loss, "ema_loss": loss / 2}) + "\n"


def raw(run: Run) -> dict[float, float]:
    """The raw losses of a run by step."""
    series = run.metrics[0].curves[0].series
    return dict(zip(series.steps, series.values, strict=True))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("".join(line(step, float(step)) for step in range(1, 21)))
    return path


def follow(log: Path) -> Live:
    return Live([log.parent], every=0, clock=Clock())


def test_a_whole_run_is_only_read_and_then_not_opened_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    live = Live([folder], every=0, clock=Clock())
    with opened(folder) as first:
        view = live.look()
    assert {"metrics.jsonl", "average.safetensors", "snapshots"} <= {p.split("/")[0] for p in first.read}
    assert first.changed == []
    with opened(folder) as second:
        assert live.look() is view
        assert live.look() is view
    assert (second.read, second.changed) == ([], [])


def test_only_the_file_that_changed_is_opened_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    live = Live([folder], every=0, clock=Clock())
    live.look()
    (folder / "sweep-200" / "sweep.json").unlink()
    write_sweep(folder / "sweep-200", 7, None)
    with opened(folder) as seen:
        view = live.look()
    assert set(seen.read) == {"sweep-200/sweep.json"}
    assert sorted(one.step for one in view.runs[0].sweeps) == [7, 400]


def test_of_a_log_that_grew_the_new_lines_are_read(log: Path) -> None:
    live = follow(log)
    first = live.look()
    assert live.look() == first
    with log.open("a") as file:
        file.write(line(21, 5.0) + line(22, 6.0)[:9])
    second = live.look()
    assert second.version == first.version + 1
    assert list(raw(second.runs[0]))[-1] == 21
    with log.open("a") as file:
        file.write(line(22, 6.0)[9:])
    assert raw(live.look().runs[0])[22] == 6.0
    assert live.look().runs[0].problems == ()


@pytest.mark.parametrize("lines", [3, 40], ids=["shorter", "longer"])
@pytest.mark.parametrize("how", ["written again", "replaced"])
def test_a_log_that_was_begun_anew_is_read_anew(log: Path, lines: int, how: str) -> None:
    live = follow(log)
    live.look()
    path = log if how == "written again" else log.with_suffix(".new")
    path.write_text("".join(line(step, 100.0 + step) for step in range(1, lines + 1)))
    os.replace(path, log)
    assert raw(live.look().runs[0]) == {step: 100.0 + step for step in range(1, lines + 1)}


def test_a_log_that_goes_on_in_a_new_file_with_the_same_end_is_read_anew(log: Path) -> None:
    live = follow(log)
    live.look()
    text = log.read_text()
    log.with_suffix(".new").write_text(line(1, 77.0)[:-1] + text[len(line(1, 1.0)) - 1 :])
    log.with_suffix(".new").replace(log)
    assert raw(live.look().runs[0])[1] == 77.0


def test_a_resumed_run_logs_some_steps_again_and_the_last_line_of_a_step_counts(log: Path) -> None:
    live = follow(log)
    live.look()
    with log.open("a") as file:
        file.write(line(11, 50.0) + line(12, 60.0))
    values = raw(live.look().runs[0])
    assert (values[10], values[11], values[12], values[13]) == (10, 50, 60, 13)


def test_a_line_torn_by_a_kill_is_named_and_does_not_end_the_log(log: Path) -> None:
    live = follow(log)
    with log.open("a") as file:
        file.write(line(21, 1.0)[:12] + line(22, 2.0) + line(23, 3.0))
    [run] = live.look().runs
    assert list(raw(run))[-2:] == [20, 23]
    assert run.problems == ("metrics.jsonl: lines that are no JSON objects were left out: 1",)


def test_a_second_log_of_a_resumed_run_goes_on_with_the_first(log: Path) -> None:
    later = log.with_name("a-second.jsonl")
    later.write_text(line(15, 99.0) + line(30, 30.0))
    os.utime(log, (1, 1))
    values = raw(follow(log).look().runs[0])
    assert (values[1], values[15], values[30]) == (1, 99, 30)


def test_a_folder_that_goes_and_comes_back_is_followed(log: Path) -> None:
    live = follow(log)
    first = live.look()
    shutil.rmtree(log.parent)
    away = live.look()
    assert away.runs[0].metrics == first.runs[0].metrics
    assert "No such file" in away.runs[0].problems[0]
    assert live.look() == away
    log.parent.mkdir()
    [empty] = live.look().runs
    assert empty.metrics == ()
    assert "holds no log" in empty.problems[0]
    log.write_text(line(1, 8.0))
    [again] = live.look().runs
    assert (raw(again), again.problems) == ({1: 8.0}, ())


def test_a_folder_can_be_watched_before_anything_is_in_it_and_no_other(tmp_path: Path) -> None:
    [run] = Live([tmp_path]).look().runs
    assert (run.name, run.metrics) == (tmp_path.name, ())
    with pytest.raises(ConfigError, match="does not exist"):
        Live([tmp_path / "nothing"])


def test_a_file_half_written_is_named_until_it_is_whole(log: Path, tmp_path: Path) -> None:
    live = follow(log)
    whole = (write_run(tmp_path / "other", steps=40) / "average.safetensors").read_bytes()
    (log.parent / "average.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "average.safetensors" in live.look().runs[0].problems[0]
    (log.parent / "average.safetensors").write_bytes(whole)
    assert live.look().runs[0].problems == ()


def test_files_are_looked_at_at_most_so_often_and_a_tenth_of_the_time(log: Path) -> None:
    clock = Clock()
    live = Live([log.parent], every=2.0, clock=clock)
    first = live.look()
    with log.open("a") as file:
        file.write(line(21, 5.0))
    clock.now = 1.9
    with opened(log.parent) as seen:
        assert live.look() is first
    assert seen.read == []
    clock.now = 2.0
    assert live.look().version == first.version + 1


def test_a_look_that_takes_long_is_followed_by_a_longer_rest(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    live = Live([log.parent], every=2.0, clock=clock)
    read = live._read  # pyright: ignore[reportPrivateUsage]

    def slowly() -> tuple[Run, ...]:
        clock.now += 10
        return read()

    monkeypatch.setattr(live, "_read", slowly)
    first = live.look()
    write_log(log, 3)
    clock.now = 99
    assert live.look() is first
    clock.now = 100
    assert live.look() is not first
