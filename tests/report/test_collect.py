"""What collectors find in the files of a run, each kind against what wrote it."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard.writer import SummaryWriter

import polyak
from polyak.errors import ConfigError
from polyak.report import collect as collecting
from polyak.report.archives import archive_facts, half_lives
from polyak.report.averages import weights_in
from polyak.report.collect import Collector, collect
from polyak.report.facts import Run
from polyak.report.logs import CHUNK, Columns, csv_lines, json_lines, trainer_state
from polyak.report.metrics import metrics_of
from polyak.report.shares import shares_of
from polyak.report.sweeps import sweep_facts
from polyak.report.tensorboard import events
from polyak.report.thin import thinned
from tests.report.runs import STEPS, write_log, write_run, write_sweep


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one")


def test_everything_in_a_folder_is_found(run: Path) -> None:
    [found] = collect([run])
    assert [(m.name, [c.weights for c in m.curves]) for m in found.metrics] == [
        ("accuracy", ["raw", "average"]),
        ("loss", [""]),
    ]
    assert sorted((w.file, w.name) for w in found.weights) == [
        ("average.safetensors", "long"),
        ("best.safetensors", "short"),
        ("state.safetensors", "h5"),
        ("state.safetensors", "h50"),
    ]
    assert [(s.step, s.raw, s.failed, len(s.points)) for s in found.sweeps] == [
        (STEPS // 2, 0.78, 1, 4),
        (STEPS, 0.80, 1, 4),
    ]
    assert [s.best.half_life for s in found.sweeps if s.best is not None] == [30.0, 30.0]
    [decisions] = found.decisions
    assert decisions.steps[-1] == STEPS
    assert any(decisions.saved)
    [adaptive] = found.adaptive
    assert (adaptive.following, adaptive.switches) == ("h50", 1)
    assert found.cost.environment["engine"] == "native"
    assert (found.cost.seconds, found.cost.train) == (
        pytest.approx(0.001 * STEPS),
        pytest.approx(0.01 * STEPS),
    )
    assert found.tokens_per_step == 100
    assert found.problems == ()


def test_the_figures_of_an_average_are_its_profiles(run: Path) -> None:
    [found], *_ = weights_in(run / "average.safetensors", "average.safetensors")
    profile = polyak.load(run / "average.safetensors").header.profile
    assert profile is not None
    assert found.half_life == profile.half_life
    assert found.mean_age == profile.mean_age
    assert found.effective_samples == profile.effective_samples
    assert found.initial_weight == profile.initial_weight
    assert found.schedule == "Power(gamma=7)"


def test_a_schedule_in_tokens_has_its_half_life_in_tokens(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    ema = polyak.EMA(model, polyak.HalfLife(tokens=5_000))
    for _ in range(400):
        ema.update(tokens=100)
    ema.save(tmp_path / "a.safetensors")
    [found], *_ = weights_in(tmp_path / "a.safetensors", "a")
    assert found.unit == "tokens"
    assert found.half_life_units == pytest.approx(5_000, rel=0.01)
    assert found.half_life == pytest.approx(50, rel=0.01)


def test_the_choices_of_an_archive_are_what_synthesize_makes(run: Path) -> None:
    facts = archive_facts(run / "snapshots", "snapshots", choices=5)
    own = [float(f"{one.half_life:.4g}") for one in facts.newest if one.half_life is not None]
    assert [one.half_life for one in facts.choices] == sorted([*half_lives(STEPS, 5), *own])
    for choice in facts.choices:
        made = polyak.synthesize(
            run / "snapshots", polyak.HalfLife(steps=choice.half_life), max_error=math.inf
        )
        assert made.header.profile is not None
        # The choices are solved together: on some processors BLAS then rounds otherwise.
        assert (choice.error, choice.noise_gain) == pytest.approx((made.error, made.noise_gain), rel=1e-9)
        alone = shares_of(made.header.profile, list(choice.made.edges))
        assert choice.made.edges == alone.edges
        assert choice.made.shares == pytest.approx(alone.shares, rel=1e-9, abs=1e-12)


def test_an_archive_in_which_a_tensor_joined_late_has_the_largest_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].requires_grad_(False)
    ema = polyak.EMA(model, {"a": polyak.Power(gamma=17), "b": polyak.Power(gamma=7)})
    with polyak.Archive(tmp_path, ema, every=10):
        for step in range(1, 201):
            if step == 120:
                model[1].requires_grad_(True)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += torch.randn_like(parameter)
            ema.update()
    for choice in archive_facts(tmp_path, "a", choices=4).choices[1:]:
        made = polyak.synthesize(tmp_path, polyak.HalfLife(steps=choice.half_life), max_error=math.inf)
        assert (choice.error, choice.noise_gain) == pytest.approx((made.error, made.noise_gain), rel=1e-9)


def test_layers_say_how_far_they_are_and_what_was_skipped(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    ema = polyak.EMA(model, 0.5)
    with polyak.Archive(tmp_path, ema, every=2, dtype="float32"):
        for _ in range(4):
            with torch.no_grad():
                model[0].weight += 1
            ema.update()
        raw = model[0].weight.detach()
        expected = (ema.tracks["average"].tensors["0.weight"] - raw).norm() / raw.norm()
        with torch.no_grad():
            model[1].bias[0] = math.nan
        ema.update(steps=2)
    facts = archive_facts(tmp_path, "a", choices=2)
    assert facts.distances is not None
    assert facts.distances.named["0.weight"][-2] == pytest.approx(float(expected), rel=1e-4)
    assert "1.bias" not in facts.distances.named, "a layer with NaN has no distance"
    [skipped] = facts.skipped
    assert (skipped.step, skipped.updates, dict(skipped.tensors)) == (6, 1, {"1.bias": 1})


def test_event_files_are_read_as_tensorboard_reads_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with SummaryWriter(tmp_path) as writer:
        for step in range(1, 300):
            writer.add_scalar("val_loss", 1 / step, step)
            writer.add_scalar("raw/val_loss", 2 / step, step * 1000)
            writer.add_scalar("new", step, step, new_style=True, double_precision=step % 2 == 0)
        writer.add_scalar("broken", math.nan, 1)
        writer.add_histogram("weights", np.arange(10.0), 1)
        writer.add_text("words", "text", 1)
    [file] = tmp_path.iterdir()
    theirs = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    columns = Columns()
    columns.add(events(file).rows)
    ours = columns.sorted()
    for tag in ("val_loss", "raw/val_loss"):
        expected = theirs.Scalars(tag)
        assert ours[tag].steps.tolist() == [one.step for one in expected]
        assert ours[tag].values.tolist() == [one.value for one in expected]
    assert ours["new"].values.tolist() == list(range(1, 300))
    assert set(ours) == {"val_loss", "raw/val_loss", "new"}


def test_half_an_event_is_left_for_the_next_look(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step in range(20):
            writer.add_scalar("loss", step, step)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    rows, end, _ = events(file)
    file.write_bytes(whole)
    more, last, _ = events(file, end)
    assert [row["loss"] for row in [*rows, *more]] == list(range(20))
    assert len(more) == 1
    assert last == len(whole)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(len(data).to_bytes(8, "little") + b"0000" + data + b"0000")
        file.flush()
        with suppress(ValueError):
            assert isinstance(events(Path(file.name)).rows, list)


def test_csv_files_of_trainers_are_read(tmp_path: Path) -> None:
    lightning, ultralytics = tmp_path / "metrics.csv", tmp_path / "results.csv"
    lightning.write_text("epoch,step,val_loss,raw/val_loss,lr\n0,3,0.5,0.6,0.1\n0,4,,,0.1\n1,7,0.4,0.7,\n")
    ultralytics.write_text("  epoch,  time, val/box_loss\n 1, 2.5, 0.9\n 2, 5.0, nan\n")
    columns = Columns()
    columns.add(csv_lines(lightning).rows)
    [metric] = metrics_of(columns.sorted())
    assert (metric.name, metric.direction, [c.weights for c in metric.curves]) == (
        "val_loss",
        "min",
        ["raw", "average"],
    )
    assert metric.curves[1].series.steps == (3, 7)
    assert metric.gap.values == pytest.approx((-0.1, -0.3))
    assert (metric.curves[1].summary.best, metric.curves[1].summary.best_at) == (0.4, 7)
    assert csv_lines(ultralytics).rows == [
        {"epoch": 1, "time": 2.5, "val/box_loss": 0.9},
        {"epoch": 2, "time": 5},
    ]


def test_the_state_of_the_hugging_face_trainer_is_read(tmp_path: Path) -> None:
    history = [
        {"step": 4, "eval_loss": 0.5, "eval_raw/loss": 0.6, "epoch": 1.0},
        {"step": 8, "eval_loss": 0.4},
    ]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history}))
    columns = Columns()
    columns.add(trainer_state(path).rows)
    [metric] = metrics_of(columns.sorted())
    assert (metric.name, [c.weights for c in metric.curves]) == ("eval_loss", ["raw", "average"])


def test_a_growing_log_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_log(tmp_path / "run" / "metrics.jsonl", 100)
    calls: list[tuple[int, int]] = []

    def counted(path: Path, begin: int = 0) -> Any:
        read = json_lines(path, begin)
        calls.append((begin, len(read.rows)))
        return read

    monkeypatch.setattr(collecting, "json_lines", counted)
    collector = Collector([path.parent])
    collector.collect()
    size = path.stat().st_size
    with path.open("a") as file:
        file.write('{"step": 101, "loss": 7.0, "ema_loss": 6.0}\n{"step": 102, "lo')
    [run] = collector.collect()
    assert run.metrics[0].curves[0].summary.last == 7.0
    assert [rows for begin, rows in calls if begin == size] == [0, 1]
    assert sum(rows for _, rows in calls) == 101
    path.write_text('{"step": 1, "loss": 5.0, "ema_loss": 4.0}\n')  # the run was started again
    [run] = collector.collect()
    assert run.metrics[0].curves[0].series.values == (5.0,)


def test_what_did_not_change_is_not_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    read = collecting.archive_facts
    monkeypatch.setattr(
        collecting, "archive_facts", lambda path, name: (calls.append(path), read(path, name))[1]
    )
    collector = Collector([run / "snapshots"])
    first = collector.collect()
    assert collector.collect() == first
    assert len(calls) == 1


def test_a_log_longer_than_a_piece_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHUNK > 1 << 20
    monkeypatch.setattr("polyak.report.logs.CHUNK", 1000)
    [run] = collect([write_log(tmp_path / "run" / "metrics.jsonl", 500).parent])
    assert run.metrics[0].curves[0].series.steps[-1] == 500
    assert len(run.metrics[0].curves[0].series.steps) == 500


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], points: int) -> None:
    series = thinned(np.arange(float(len(values))), np.array(values), points)
    assert len(series.steps) <= max(points, min(len(values), points))
    assert list(series.steps) == sorted(set(series.steps))
    assert (series.steps[0], series.steps[-1]) == (0, len(values) - 1)
    assert min(series.values) == pytest.approx(min(values), rel=1e-5, abs=1e-12)
    assert max(series.values) == pytest.approx(max(values), rel=1e-5, abs=1e-12)


@given(st.integers(1, 60_000), st.floats(0.5, 0.9999))
def test_the_pieces_of_a_profile_are_its_weights(steps: int, beta: float) -> None:
    profile = polyak.Profile.from_decay(beta, steps)
    found, weights = shares_of(profile), profile.weights()
    assert found.initial + sum(found.shares) == pytest.approx(1, abs=2e-3)
    assert found.initial == pytest.approx(weights[0])
    newest = np.cumsum(weights[::-1])
    for share, count in ((0.5, found.median), (0.9, found.most)):
        assert newest[int(count) - 1] >= share * (1 - 1e-9)
        assert count == 1 or newest[int(count) - 2] < share


def test_files_of_one_folder_are_one_run_and_folders_are_one_each(run: Path, tmp_path: Path) -> None:
    two = shutil.copytree(run, tmp_path / "one")
    assert [one.name for one in collect([run / "metrics.jsonl", run / "average.safetensors"])] == ["one"]
    both = collect([run, two])
    assert [one.name for one in both] == [str(run.resolve()), str(two.resolve())]
    assert [replace(one, name="") for one in both] == [replace(both[0], name="")] * 2


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", 10, None)
    (tmp_path / "bad.safetensors").write_bytes(b"not a file")
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    broken = write_sweep(tmp_path / "broken", 10, None) / "sweep.json"
    broken.write_text('{"mode": "max"}')
    [found] = collect([tmp_path])
    assert len(found.sweeps) == 1
    starts = ("bad.jsonl: ", "bad.safetensors is not", "broken/sweep.json: ")
    assert all(map(str.startswith, sorted(found.problems), starts)), found.problems
    assert len(found.problems) == len(starts)
    with pytest.raises(ValueError, match="no record of a sweep"):
        sweep_facts(broken, "sweep.json")


def test_a_path_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        collect([tmp_path / "nothing"])
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="holds no log, archive, sweep or average"):
        collect([tmp_path])
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"bad\.safetensors"):
        collect([tmp_path])


def test_records_are_values(run: Path) -> None:
    assert collect([run]) == collect([run])
    assert Run("a") == Run("a")
