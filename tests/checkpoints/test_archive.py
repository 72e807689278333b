"""Snapshots of a run: when they are taken, what they hold, what survives a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import polyak
from polyak import EMA, Archive, CheckpointError, ConfigError, HalfLife, Power, synthesize
from polyak._foreign.open_any import open_weights
from polyak.archive import recorder, snapshots, synthesis
from tests.checkpoints.archive_worker import move
from tests.processes import begun

TRACKS = {"short": Power(gamma=20), "long": Power(gamma=6)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))


def run(ema: polyak.EMA, steps: int) -> None:
    for _ in range(steps):
        move(ema.model, ema.step + 1)
        ema.update()


def test_each_snapshot_is_the_average_of_its_moment(tmp_path: Path) -> None:
    model = network()
    ema = polyak.EMA(model, TRACKS)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    truth = {}
    with Archive(tmp_path, ema, every=5, dtype="float32", keep="all"):
        for step in range(1, 31):
            run(ema, 1)
            if step % 5 == 0:
                truth[step] = {
                    n: {k: t.clone() for k, t in tr.tensors.items()} for n, tr in ema.tracks.items()
                }
    base = load_file(tmp_path / "000000000-base.safetensors")
    assert {name: tensor.tolist() for name, tensor in base.items()} == {
        name: tensor.tolist() for name, tensor in first.items()
    }
    assert len(list(tmp_path.iterdir())) == 1 + 6 * 2
    for step, tracks in truth.items():
        for name, tensors in tracks.items():
            average = polyak.load(tmp_path / f"{step:09}-{name}.safetensors")
            assert average.header.step == step
            assert average.header.profile == polyak.Profile.from_decay(TRACKS[name], step)
            for key, tensor in tensors.items():
                np.testing.assert_array_equal(average.tensors[key], tensor.numpy())
            assert average.tensors["1.num_batches_tracked"] == step  # copied, whole and exact


def test_a_slow_disk_tears_no_snapshot_and_bounds_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer starts only after the average has moved on; at most one snapshot waits."""
    gate, written = threading.Event(), []

    def slow(folder: Path, captured: recorder.Captured[torch.Tensor], number: int) -> None:
        gate.wait(10)
        written.append((captured.header.step, captured.content.tensors["0.weight"].numpy().copy()))

    ema = polyak.EMA(network(), 0.9)
    archive = Archive(tmp_path, ema, every=10, dtype="float32")
    monkeypatch.setattr(recorder, "write_snapshot", slow)
    run(ema, 10)
    at_ten = ema.tracks["average"].tensors["0.weight"].clone()
    run(ema, 9)
    assert written == []
    threading.Timer(0.2, gate.set).start()
    run(ema, 1)  # the second snapshot waits for the first to be written
    assert [step for step, _ in written][:1] == [10]
    np.testing.assert_array_equal(written[0][1], at_ten.numpy())
    archive.close()


def test_frozen_tensors_are_stored_once_and_tied_ones_named(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    ema = polyak.EMA(model, 0.9)
    with Archive(tmp_path, ema, every=1, dtype="float32") as archive:
        with torch.no_grad():
            model[0].weight += 1
        ema.update()
    assert set(load_file(archive.snapshots[-1].path)) == {"0.weight"}
    made = polyak.synthesize(tmp_path, 0.9)
    assert set(made.tensors) == set(model.state_dict())
    np.testing.assert_allclose(made.tensors["1.weight"], ema.module[0].weight.detach().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(made.tensors["2.weight"], model[2].weight.detach().numpy())


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "bfloat16", torch.bfloat16, "float32"])
def test_averages_are_rounded_and_the_rest_is_not(tmp_path: Path, dtype: object) -> None:
    model = network()
    with torch.no_grad():
        model[0].bias[0] = 1e6  # float16 ends at 65504
    with Archive(tmp_path, polyak.EMA(model, 0.9), dtype=dtype) as archive:
        archive.snapshot()
    name = str(dtype).removeprefix("torch.")
    tensors = load_file(archive.snapshots[-1].path)
    assert tensors["0.weight"].dtype == getattr(torch, name)
    assert tensors["0.bias"].dtype == (torch.float32 if name == "float16" else getattr(torch, name))
    assert tensors["1.num_batches_tracked"].dtype == torch.int64
    assert float(tensors["0.bias"][0]) == pytest.approx(1e6, rel=0.01)
    state = archive.snapshots[-1].header.state
    stored = sum(
        float((tensors[n].double() - p.double()).square().sum())
        for n, p in model.state_dict().items()
        if n in dict(model.named_parameters())
    )
    assert state["rounded"] == pytest.approx(stored, rel=1e-4, abs=1e-30)


def test_auto_takes_one_each_time_the_shortest_average_is_half_new(tmp_path: Path) -> None:
    ema = polyak.EMA(network(), {"short": polyak.HalfLife(steps=20), "long": polyak.HalfLife(steps=200)})
    with Archive(tmp_path, ema, keep="all") as archive:
        run(ema, 95)
    assert archive.steps == [0, 20, 40, 60, 80, 95]
    fast = polyak.EMA(network(), 0.5)
    with Archive(tmp_path / "fast", fast, keep="all") as archive:
        run(fast, 450)
    gaps = np.diff(archive.steps)
    assert gaps[:50].max() == 1
    assert gaps[-2] >= 4  # one in a hundred steps so far


@pytest.mark.parametrize(
    ("keep", "every", "most"), [("log", 2, 70), ("even", 2, 66), (9, 6, 10), ("all", 6, 101)]
)
def test_old_snapshots_are_thinned(in_memory: Path, keep: str | int, every: int, most: int) -> None:
    ema = polyak.EMA(nn.Linear(2, 1), {"short": Power(gamma=20), "long": Power(gamma=6)})
    with Archive(in_memory, ema, every=every, keep=keep) as archive:
        run(ema, 600)
    steps = archive.steps
    assert steps[0] == 0
    assert steps[-1] == 600
    assert most * 0.5 <= len(steps) <= most
    assert len(archive.snapshots) == 2 * len(steps) - 1
    # What the thinning is for: wide averages can still be made after it.
    rows = polyak.synthesizable(archive, half_lives=[60, 150, 300])
    assert all(row.error < (0.01 if keep != 9 else 0.05) for row in rows)


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    first, second = polyak.EMA(network(), 0.9), polyak.EMA(network(), 0.9)
    with Archive(tmp_path, first, every=2):
        run(first, 4)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=f"belongs to run {first.run}, this EMA to run {second.run}"):
        Archive(tmp_path, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with Archive(tmp_path / "other", second, every=2):
        run(second, 4)
    (tmp_path / "other" / "000000004-average.safetensors").replace(tmp_path / "000000009-average.safetensors")
    with pytest.raises(CheckpointError, match=f"runs .*{second.run}"):
        Archive(tmp_path).steps  # noqa: B018


def test_going_back_puts_the_abandoned_future_aside(tmp_path: Path) -> None:
    model = network()
    ema = polyak.EMA(model, 0.9)
    archive = Archive(tmp_path, ema, every=2, dtype="float32", keep="all")
    run(ema, 4)
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in model.state_dict().items()}
    ema.save(tmp_path / "state", resumable=True)
    run(ema, 4)
    model.load_state_dict(state)
    ema.load(tmp_path / "state")
    with torch.no_grad():
        model[0].weight += 5  # another future
    run(ema, 2)
    archive.close()
    assert archive.steps == [0, 2, 4, 6]
    assert sorted(path.name for path in (tmp_path / "abandoned").iterdir()) == [
        "000000006-average.safetensors",
        "000000008-average.safetensors",
    ]
    newest = polyak.load(tmp_path / "000000006-average.safetensors")
    np.testing.assert_array_equal(
        newest.tensors["0.weight"], ema.tracks["average"].tensors["0.weight"].numpy()
    )


def test_a_full_disk_is_a_warning_now_and_an_error_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema = polyak.EMA(network(), 0.9)
    archive = Archive(tmp_path, ema, every=2)

    def full(folder: Path, captured: recorder.Captured[torch.Tensor], number: int) -> None:
        raise CheckpointError("No space left on device. Nothing was changed.")

    run(ema, 2)
    archive.flush()
    monkeypatch.setattr(recorder, "write_snapshot", full)
    run(ema, 2)
    with pytest.warns(RuntimeWarning, match=r"a snapshot is missing .*No space left"):
        archive.flush()
    monkeypatch.undo()
    run(ema, 2)
    with pytest.raises(CheckpointError, match="lacks a snapshot: No space left"):
        archive.close()
    assert archive.steps == [0, 2, 6]
    assert ema.step == 6


def test_after_an_error_there_is_no_last_snapshot(tmp_path: Path) -> None:
    ema = polyak.EMA(network(), 0.9)
    archive = Archive(tmp_path, ema, every=2)

    def training() -> None:
        with archive:
            run(ema, 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    assert archive.steps == [0, 2]
    run(ema, 3)  # no longer followed
    assert archive.steps == [0, 2]
    with pytest.raises(ConfigError, match="follows no EMA"):
        archive.snapshot()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "every=0"),
        ({"every": "often"}, "every='often'"),
        ({"dtype": "float64"}, "dtype='float64'"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8"),
        ({"keep": 0}, "keep=0"),
        ({"keep": "some"}, "keep='some'"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Archive(tmp_path / "new", polyak.EMA(network(), 0.9), **settings)
    assert not (tmp_path / "new").exists()


def test_no_snapshot_while_the_model_holds_the_average(tmp_path: Path) -> None:
    """What is raw and how far the average is from it could not be told then."""
    ema = polyak.EMA(network(), 0.9)
    with Archive(tmp_path, ema, every=5) as archive:
        with ema.average_parameters(), pytest.raises(polyak.SwapError, match="capture: the model holds"):
            archive.snapshot()
        archive.snapshot()
        assert [snapshot.number for snapshot in archive.snapshots] == [0, 1]


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no snapshots"):
        polyak.synthesize(tmp_path, 0.9)
    with pytest.raises(CheckpointError, match="holds no snapshots"):
        Archive(tmp_path / "missing").steps  # noqa: B018
    Archive(tmp_path, polyak.EMA(network(), 0.9)).flush()
    with pytest.raises(CheckpointError, match="holds only the base"):
        polyak.synthesize(tmp_path, 0.9)


def ended(process: BaseProcess, log: Path) -> bool:
    process.join()
    return process.exitcode == 0 and log.read_text().endswith("done\n")


@pytest.mark.parametrize("every", [10, "auto"])
def test_a_run_killed_again_and_again_leaves_the_archive_of_one_that_never_was(
    in_memory: Path, every: int | str
) -> None:
    def worker(name: str, log: str) -> tuple[BaseProcess, Path]:
        (in_memory / name).mkdir(exist_ok=True)
        code = "from tests.checkpoints.archive_worker import *; "
        code += f"train(Path({str(in_memory / name)!r}), 400, {every!r})"
        return begun(code, in_memory / log), in_memory / log

    moments, exits = random.Random(5), list[int | None]()
    assert ended(*worker("whole", "whole.log"))
    for death in range(5):
        process, log = worker("killed", f"{death}.log")
        while not log.exists() or not log.read_text().startswith("started"):
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(moments.uniform(0.01, 0.08))
        process.kill()
        process.join()
        exits.append(process.exitcode)
    assert -signal.SIGKILL in exits
    assert ended(*worker("killed", "last.log"))
    files = {
        name: sorted((in_memory / name / "archive").glob("*.safetensors")) for name in ("whole", "killed")
    }
    assert [path.name for path in files["whole"]] == [path.name for path in files["killed"]]
    assert len({snapshot.header.run for snapshot in Archive(in_memory / "killed" / "archive").snapshots}) == 1
    for one, other in zip(files["whole"], files["killed"], strict=True):
        a, b = load_file(one), load_file(other)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_has_one_writer_and_says_who(tmp_path: Path) -> None:
    first = Archive(tmp_path, polyak.EMA(network(), TRACKS), every=5)
    with pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        Archive(tmp_path, polyak.EMA(network(), TRACKS), every=5)
    first.close()
    assert not (tmp_path / ".archive.lock").exists()


@pytest.mark.parametrize("name", ["raw", "base"])
def test_a_track_is_not_called_what_the_archive_calls_otherwise(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        polyak.EMA(network(), {name: 0.9})


FORKED = """
import os, sys, time, torch, polyak

model = torch.nn.Linear(2, 2)
ema = polyak.EMA(model, {"a": 0.5, "b": 0.9})
with polyak.Archive(sys.argv[1], ema, every=1) as archive:
    ema.update()
    archive.flush()
    before = sorted(os.listdir(sys.argv[1]))
    child = os.fork()
    if child == 0:
        ema.update()
        archive.snapshot()
        archive.flush()
        archive.close()
        os._exit(0 if sorted(os.listdir(sys.argv[1])) == before else 3)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, 9)
        sys.exit("the child hangs")
    assert os.waitstatus_to_exitcode(ended[1]) == 0, "the child wrote"
    ema.update()  # the parent goes on
print([snapshot.step for snapshot in polyak.Archive(sys.argv[1]).snapshots])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_hangs_nor_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "archive")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1, 1, 2, 2]"


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    ema = EMA(nn.Linear(2, 2), 0.5)
    with Archive(tmp_path, ema, every=1):
        ema.update()
    left = tmp_path / ".000000002-average.safetensors.0123456789ab.part"
    mine = tmp_path / "notes.part"
    left.touch()
    mine.touch()
    with Archive(tmp_path, ema, every=1):
        assert not left.exists()
        assert mine.exists()


def test_a_snapshot_thinned_out_while_it_is_opened_is_looked_past(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema = EMA(nn.Linear(2, 2), {"a": Power(gamma=7), "b": Power(gamma=17)})
    with Archive(tmp_path, ema, every=5):
        for _ in range(60):
            ema.update()
    gone = sorted(tmp_path.glob("000000030-*"))

    def thinning(path: Path) -> Any:
        while gone:
            gone.pop().unlink()
        return open_weights(path)

    monkeypatch.setattr(synthesis, "open_weights", thinning)
    made = synthesize(tmp_path, HalfLife(steps=12), max_error=0.2)
    assert not any(name.startswith("000000030") for name in made.coefficients)


def test_a_damaged_snapshot_is_no_thinned_one(tmp_path: Path) -> None:
    ema = EMA(nn.Linear(2, 2), {"a": Power(gamma=7), "b": Power(gamma=17)})
    with Archive(tmp_path, ema, every=5):
        for _ in range(20):
            ema.update()
    next(iter(tmp_path.glob("000000010-*"))).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="000000010"):
        synthesize(tmp_path, HalfLife(steps=12), max_error=0.9)


def test_each_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run that writes the archive, by one who reads it, and again only where a file was replaced."""
    opened: list[str] = []
    monkeypatch.setattr(
        snapshots, "open_weights", lambda path: opened.append(path.name) or open_weights(path)
    )
    ema = EMA(network(), TRACKS)
    with Archive(tmp_path, ema, every=1, keep="log"):
        run(ema, 40)
    assert len(opened) == len(set(opened)) == 1 + 40 * 2
    opened.clear()
    archive = Archive(tmp_path)
    files = sorted(snapshot.path.name for snapshot in archive.snapshots)
    assert (archive.steps[-1], archive.run) == (40, ema.run)
    synthesize(archive, HalfLife(steps=10), max_error=1)
    assert sorted(opened) == files
    (tmp_path / files[0]).write_bytes(b"not a snapshot")
    with pytest.raises(CheckpointError, match=files[0]):
        archive.run  # noqa: B018
