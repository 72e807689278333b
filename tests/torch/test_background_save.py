"""Saving beside the training: of one moment or refused, in the background, at the end of the interpreter."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from polyak import CheckpointError, ConfigError
from polyak._core import save
from polyak._files import write
from polyak._files.header import Header
from polyak._foreign.open_any import open_weights

TRACKS = {"short": 0.9, "long": 0.99}


def network(size: int = 40) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, size), nn.BatchNorm1d(size), nn.Linear(size, size))


def step(ema: polyak.EMA) -> None:
    with torch.no_grad():
        for tensor in ema.model.parameters():
            tensor += 1
    ema.update()


class Halfway:
    """Lets something happen while a file is being written: after its first tensor was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happens) -> None:
        write_body, self.times = write.write_body, 0

        def slowly(file, layout, specs, pieces) -> None:
            def watched(name):
                yield from pieces(name)
                self.times += 1
                if self.times == 1:
                    happens()

            write_body(file, layout, specs, watched)

        monkeypatch.setattr("polyak._files.shards.write_body", slowly)


CHANGES = {
    "update": step,
    "load": lambda ema: ema.load_state_dict(polyak.EMA(network(), TRACKS).state_dict()),
    "in place": lambda ema: ema.tracks["short"].tensors["0.weight"].zero_(),
}


@pytest.mark.parametrize("kind", [{}, {"resumable": True}, {"max_shard_size": 3000}, {"track": "long"}])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_while_it_is_written_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, kind: dict[str, object]
) -> None:
    if change == "in place" and "track" in kind:
        pytest.skip("the other track may change")
    ema = polyak.EMA(network(), TRACKS)
    step(ema)
    ema.save(tmp_path / "a.safetensors", **kind)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    halfway = Halfway(monkeypatch, lambda: CHANGES[change](ema))
    with pytest.raises(CheckpointError, match=r"changed while they were read|was changed while"):
        ema.save(tmp_path / "a.safetensors", **kind)
    assert halfway.times > 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    ema.save(tmp_path / "a.safetensors", **kind)  # nothing happens this time


def test_raw_weights_that_train_meanwhile_replace_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    ema, optimizer = polyak.EMA(model, 0.9), torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 40)).sum().backward()
    Halfway(monkeypatch, optimizer.step)
    with pytest.raises(CheckpointError, match="changed while"):
        ema.save(tmp_path / "a.safetensors", "raw")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("track", ["raw", "average"])
def test_a_block_beside_a_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, track: str
) -> None:
    """The model points at other memory meanwhile; what is saved stays where it was."""
    ema = polyak.EMA(network(), 0.9)
    step(ema)
    ema.save(tmp_path / "before.safetensors", track)

    def block() -> None:
        ema.average_parameters().__enter__()

    Halfway(monkeypatch, block)
    ema.save(tmp_path / "a.safetensors", track)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "before.safetensors").read_bytes()


def test_what_is_written_passes_its_own_checksum_whatever_another_thread_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of memory that changes between its sum and its writing."""
    array, crc32 = torch.zeros(500_000), write.zlib.crc32

    def summed(view, value=0):
        result = crc32(view, value)
        array.add_(1)
        return result

    monkeypatch.setattr(write.zlib, "crc32", summed)
    specs = {"a": write.Spec(array.numpy().dtype, (500_000,))}
    header = Header("average", 0, None, None, "average", "run")
    path = tmp_path / "a.safetensors"
    write.write_safetensors(path, specs, header.to_metadata(), lambda _: [array.numpy()])
    monkeypatch.undo()
    assert polyak.load(path).tensors["a"].max() > 0


def test_beside_training_every_save_is_refused_or_one_of_its_steps(tmp_path: Path) -> None:
    ema, stop = polyak.EMA(network(200), 0.5), threading.Event()

    def train() -> None:
        while not stop.is_set():
            step(ema)

    thread = threading.Thread(target=train)
    thread.start()
    refusals: list[str] = []
    try:
        for _ in range(60):
            try:
                ema.save(tmp_path / "a.safetensors")
            except CheckpointError as error:
                refusals.append(str(error))
            else:
                polyak.load(tmp_path / "a.safetensors")
    finally:
        stop.set()
        thread.join()
    assert refusals
    assert all("changed while" in refusal for refusal in refusals)
    ema.save(tmp_path / "a.safetensors")
    polyak.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", [{}, {"resumable": True}, {"max_shard_size": 3000}, {"track": "raw"}])
def test_a_save_in_the_background_is_of_its_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, object]
) -> None:
    ema, go = polyak.EMA(network(), TRACKS), threading.Event()
    step(ema)
    ema.save(tmp_path / "now.safetensors", **kind)
    expected = open_weights(tmp_path / "now.safetensors")
    Halfway(monkeypatch, go.wait)
    saving = ema.save(tmp_path / "a.safetensors", background=True, **kind)
    for _ in range(5):
        step(ema)
    assert not saving.done
    assert not list(tmp_path.glob("a*"))
    go.set()
    saving.wait()
    assert saving.done
    with open_weights(tmp_path / "a.safetensors") as found, expected:
        assert found.metadata["polyak"] == expected.metadata["polyak"]
        assert found.tensors.keys() == expected.tensors.keys()
        for name, tensor in found.tensors.items():
            assert tensor.read().tobytes() == expected.tensors[name].read().tobytes(), name


def test_a_resumable_file_of_the_background_continues_bit_for_bit(tmp_path: Path) -> None:
    ema = polyak.EMA(network(), TRACKS, dtype=torch.bfloat16, every=2)
    for _ in range(3):
        step(ema)
    saving = ema.save(tmp_path / "state", resumable=True, background=True)
    weights = {name: tensor.clone() for name, tensor in ema.model.state_dict().items()}
    step(ema)
    saving.wait()
    other = polyak.EMA(network(), TRACKS, dtype=torch.bfloat16, every=2)
    other.model.load_state_dict(weights)
    other.load(tmp_path / "state")
    step(other)
    for name, track in ema.tracks.items():
        assert track.profile == other.tracks[name].profile
        for key, tensor in track.tensors.items():
            assert torch.equal(tensor, other.tracks[name].tensors[key])


def test_tied_tensors_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    ema, copied = polyak.EMA(model, 0.9), []
    on_host = polyak.torch.tensors.on_host
    monkeypatch.setattr(polyak.torch.tensors, "on_host", lambda t: copied.append(t) or on_host(t))
    ema.save(tmp_path / "a.safetensors", background=True).wait()
    assert len(copied) == 3
    assert polyak.load(tmp_path / "a.safetensors").tensors.keys() == model.state_dict().keys()


def test_saves_take_their_places_in_the_order_of_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at most one copy waits to be written."""
    ema, running, most = polyak.EMA(network(), 0.9), 0, 0
    write_sharded = save.write_sharded

    def counted(*arguments) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        threading.Event().wait(0.02)
        write_sharded(*arguments)
        running -= 1

    monkeypatch.setattr(save, "write_sharded", counted)
    for background in (True, True, True, False, True):
        step(ema)
        handle = ema.save(tmp_path / "a.safetensors", background=background)
        if not background:
            assert polyak.load(tmp_path / "a.safetensors").header.step == 4
    handle.wait()
    assert polyak.load(tmp_path / "a.safetensors").header.step == 5
    assert most == 1


def test_an_error_in_the_background_is_raised_by_wait_or_is_a_warning(tmp_path: Path) -> None:
    ema = polyak.EMA(network(), 0.9)
    saving = ema.save(tmp_path / "missing" / "a.safetensors", background=True)
    with pytest.raises(CheckpointError, match="No such file or directory"):
        saving.wait()
    saving.wait()  # raised once
    forgotten = ema.save(tmp_path / "missing" / "b.safetensors", background=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del saving
        gc.collect()
    del forgotten
    with pytest.warns(RuntimeWarning, match=r"b\.safetensors was not saved: .*No such file"):
        ema.save(tmp_path / "c.safetensors", background=True).wait()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"track": "none"}, ConfigError),
        ({"max_shard_size": "much"}, ConfigError),
    ],
)
def test_what_is_wrong_with_the_call_is_said_at_once_or_by_wait(
    tmp_path: Path, wrong: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        polyak.EMA(network(), 0.9).save(tmp_path / "a.safetensors", background=True, **wrong).wait()
    assert list(tmp_path.iterdir()) == []


AT_EXIT = """
import sys, threading, time, torch, polyak
from polyak._files import write
write._SYNC_EVERY = 1000  # so that the disk is asked while the interpreter ends
model = torch.nn.Sequential(*[torch.nn.Linear(50, 50) for _ in range(8)])
sync, ema = write._sync_data, polyak.EMA(model, 0.9)
def slowly(handle):
    time.sleep(0.05)
    sync(handle)
write._sync_data = slowly
ema.save(sys.argv[1], background=True)
"""


@pytest.mark.parametrize("folder", [".", "missing"])
def test_the_interpreter_ends_after_the_file_is_written_or_says_that_it_is_not(
    tmp_path: Path, folder: str
) -> None:
    path = tmp_path / folder / "a.safetensors"
    done = subprocess.run([sys.executable, "-c", AT_EXIT, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    if folder == ".":
        assert (len(polyak.load(path).tensors), done.stderr) == (16, "")
    else:
        assert "a.safetensors was not saved" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_it_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ema, reached, go = polyak.EMA(nn.Linear(2, 2), 0.9), threading.Event(), threading.Event()
    Halfway(monkeypatch, lambda: (reached.set(), go.wait()))
    saving = ema.save(tmp_path / "a.safetensors", background=True)
    reached.wait()
    child = os.fork()
    if child == 0:
        try:
            ema.save(tmp_path / "child.safetensors")  # waits for nobody
            saving.wait()
        except CheckpointError as error:
            os._exit(3 if "is written by process" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "child.safetensors").exists()
    go.set()
    saving.wait()
    assert polyak.load(tmp_path / "a.safetensors").header.step == 0


@pytest.mark.parametrize(
    ("name", "better"),
    [("x.pt", "x.safetensors"), ("x.y.CKPT", "x.y.safetensors"), ("model.pdparams", "model.safetensors")],
)
def test_a_name_of_another_format_is_refused_with_the_right_one(
    tmp_path: Path, name: str, better: str
) -> None:
    ema = polyak.EMA(nn.Linear(2, 2), 0.9)
    for settings in ({}, {"resumable": True}, {"background": True}):
        with pytest.raises(ConfigError, match=f"no reader of .* files opens. Name it '{better}'"):
            ema.save(tmp_path / name, **settings)
    assert list(tmp_path.iterdir()) == []
    ema.save(tmp_path / "plain")
    ema.save(str(tmp_path / "x.safetensors.new"))
