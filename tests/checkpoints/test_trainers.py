"""Files that the trainers really wrote while polyak averaged: what they are, and the weights taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyak
from polyak.cli.describe import CheckpointSummary, describe
from polyak.convert.convert import convert
from polyak.errors import CheckpointError
from tests.states import closed, opened
from tests.trainers.digits import network

# Other libraries' own warnings are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")
DECAYS = {"short": polyak.Constant(0.5), "long": polyak.Warmup(0.99)}


def check_inspected(path: Path, ema: polyak.EMA, library: str) -> CheckpointSummary:
    """Every track is told with its schedule and its history."""
    found = describe(path)
    assert isinstance(found, CheckpointSummary)
    assert (found.library, found.step, found.run) == (library, ema.step, ema.run)
    averages = {one.name: one for one in found.parts if one.role == "average"}
    assert averages.keys() == ema.tracks.keys()
    for name, track in ema.tracks.items():
        assert (averages[name].decay, averages[name].profile) == (track.decay, track.profile)
    return found


def check_converted(path: Path, ema: polyak.EMA, track: str) -> None:
    """What is taken out is what the EMA would have saved then, header and all."""
    made = path.with_name("made.safetensors")
    convert(path, made, track)
    ema.save(path.with_name("saved.safetensors"), track)
    ours, expected = polyak.load(made), polyak.load(path.with_name("saved.safetensors"))
    if track == "raw":  # whose run a file of weights alone does not know
        assert (ours.header.role, ours.header.step) == ("raw", ema.step)
    else:
        assert ours.header == expected.header
    assert ours.tensors.keys() == expected.tensors.keys()
    assert all(np.array_equal(ours.tensors[name], expected.tensors[name]) for name in expected.tensors)


def test_lightning(tmp_path: Path) -> None:
    from tests.trainers.test_lightning import Digits, WeightAveraging, loader, trainer

    average = WeightAveraging(DECAYS)
    module = Digits()  # one of its layers has two names
    module.net[3].requires_grad_(False)
    module.net = torch.compile(module.net, backend="eager")
    run = trainer(tmp_path, average, max_epochs=1)
    run.fit(module, loader())
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    found = check_inspected(path, average.ema, "lightning")
    roles = {one.name: (one.role, one.path) for one in found.parts}
    assert roles["short"] == ("average", "polyak.ema.tracks.short.tensors")
    assert roles["raw"] == ("raw", "state_dict")
    assert found.parts[0].notes == ("2 tensors are not averaged, and are as in the raw weights",)
    check_converted(path, average.ema, "short")
    check_converted(path, average.ema, "long")
    convert(path, tmp_path / "raw.safetensors", "raw")
    raw = polyak.load(tmp_path / "raw.safetensors").tensors
    assert all(np.array_equal(raw[name], value.numpy()) for name, value in module.state_dict().items())


def test_ultralytics(tmp_path: Path) -> None:
    from tests.trainers.test_ultralytics import DETECTOR, YOLO, WeightAveraging, train

    model = YOLO(DETECTOR)
    average = WeightAveraging(DECAYS).attach(model)
    train(tmp_path, model, epochs=1)
    path = tmp_path / "runs" / "weights" / "last.polyak.pt"
    found = check_inspected(path, average.ema, "polyak")
    assert [one.role for one in found.parts] == ["average", "average", "raw", "optimizer"]
    assert found.parts[0].notes == ("1 tensors are not averaged, and are as in the raw weights",)
    for track in ("short", "long", "raw"):
        check_converted(path, average.ema, track)
    shown = describe(path.with_name("best.pt"))
    assert isinstance(shown, CheckpointSummary)
    assert "averaged by polyak: best.polyak.pt beside it says how" in shown.notes[1]


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.trainers.test_transformers import WeightAveraging, trainer

    run = trainer(tmp_path, save_strategy="steps", save_steps=12)
    average = WeightAveraging(DECAYS).attach(run)
    run.train()
    folder = tmp_path / "checkpoint-12"
    found = check_inspected(folder / "polyak.safetensors", average.ema, "polyak")
    assert (found.role, found.integrity) == ("resumable", "verified")
    check_converted(folder / "polyak.safetensors", average.ema, "long")
    raw = describe(folder)
    assert isinstance(raw, CheckpointSummary)
    assert (raw.library, [one.role for one in raw.parts]) == ("transformers", ["raw"])
    others = [describe(folder / name) for name in ("optimizer.pt", "scheduler.pt")]
    assert all(isinstance(one, CheckpointSummary) and one.library != "transformers" for one in others)


def test_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    from polyak.trainers.accelerate import weight_averaging

    accelerator, model = accelerate.Accelerator(cpu=True), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = weight_averaging(accelerator, model, optimizer, DECAYS, dtype="split")
    accelerator.prepare(model, optimizer)
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    accelerator.save_state(str(tmp_path))
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    path = tmp_path / "custom_checkpoint_0.pkl"
    check_inspected(path, ema, "polyak")
    check_converted(path, ema, "long")
    beside = describe(tmp_path)
    assert isinstance(beside, CheckpointSummary)
    assert (beside.library, [one.role for one in beside.parts]) == ("accelerate", ["unknown"])
    assert "custom_checkpoint_0.pkl" in beside.notes[0]


def saved(path: Path, ema: polyak.EMA, **others: Any) -> Path:
    torch.save({"ema": ema.state_dict(), **others}, path)
    return path


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    model = network()
    ema = polyak.EMA(model, 0.9, exclude="3.*")
    ema.update()
    path = saved(tmp_path / "all.pt", ema, model=model.state_dict(), step=7)
    made = convert(path, tmp_path / "out.safetensors")
    assert [(one.part, one.role, one.tensors) for one in made] == [
        ("average", "average", 9),
        ("raw", "raw", 9),
    ]
    path = saved(tmp_path / "other.pt", ema, model=torch.nn.Bilinear(2, 3, 4).state_dict())
    [average, _] = convert(path, tmp_path / "out.safetensors")
    assert average.tensors == 7, "of what is averaged and copied, none is in that other model"


def test_a_malformed_state_is_told(tmp_path: Path) -> None:
    state = opened(polyak.EMA(network(), 0.9).state_dict())
    broken: dict[str, Any] = {"decay": {"kind": "Constant", "beta": 2}, "profile": "{}", "joined": 3}
    for key, value in broken.items():
        track = {**state["tracks"]["average"], key: value}
        damaged = {**state, "tracks": {"average": track}}
        for one in (damaged, closed(damaged)):
            torch.save(one, tmp_path / "state.pt")
            with pytest.raises(CheckpointError):
                describe(tmp_path / "state.pt")
    for text in ("no JSON", "[" * 100_000, 3):
        torch.save({**closed(state), "polyak": text}, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match="not the text of an average's state"):
            describe(tmp_path / "state.pt")
    for key, value in {"tracks": 3, "copies": None, "step": "many"}.items():
        torch.save({**state, key: value}, tmp_path / "state.pt")
        describe(tmp_path / "state.pt")
