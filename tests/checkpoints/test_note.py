"""A note beside a file of another program's: believed of the bytes it was written of, and of no others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import polyak
from polyak._files.header import Header
from polyak._foreign.own import SUFFIX, write_note
from polyak.cli.describe import CheckpointSummary, describe
from polyak.convert.convert import convert
from polyak.errors import CheckpointError
from polyak.schedules import Constant, Profile

AVERAGE = Header("long", 30, Constant(0.9), Profile.from_decay(0.9, 30), "average", "0123abcd")
RAW = Header("raw", 30, None, Profile.raw(30), "raw", "0123abcd")


def described(where: Path) -> CheckpointSummary:
    found = describe(where)
    assert isinstance(found, CheckpointSummary)
    return found


def save(path: Path, value: float = 1.0) -> Path:
    save_file({"w": np.full(5, value, np.float32)}, path)
    return path


@pytest.mark.parametrize("header", [AVERAGE, RAW], ids=lambda header: header.role)
def test_a_note_says_what_the_weights_are(header: Header, tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors")
    write_note(path, header)
    for where in (path, tmp_path):  # the folder opens the file
        found = described(where)
        assert (found.library, found.step, found.run) == ("polyak", 30, "0123abcd")
        [one] = found.parts
        assert (one.name, one.role, one.decay) == (header.track, header.role, header.decay)
        assert one.profile == (header.profile if header is AVERAGE else None)
        assert found.notes == ("a note of polyak's beside the file says so",)
    convert(path, tmp_path / "made.safetensors")
    assert polyak.load(tmp_path / "made.safetensors").header == header


@pytest.mark.parametrize("flipped", [0, 1 << 24, (1 << 24) + 7, -1])
def test_any_byte_that_changed_makes_a_note_void(flipped: int, tmp_path: Path) -> None:
    path = tmp_path / "big.pt"
    torch.save({"w": torch.zeros((1 << 22) + 100)}, path)  # 16 MB and a little: summed in two pieces
    write_note(path, AVERAGE)
    assert described(path).parts[0].role == "average"
    weight = torch.zeros((1 << 22) + 100)
    weight[flipped // 4] = 1e-30
    torch.save({"w": weight}, path)
    found = described(path)
    assert [one.role for one in found.parts] == ["unknown"]
    assert "big.pt.polyak.json describes other bytes than those of" in found.notes[-1]


def test_shards_have_one_note_beside_their_index(tmp_path: Path) -> None:
    names = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    for name, key in zip(names, "ab", strict=True):
        save_file({key: np.ones(3)}, tmp_path / name)
    index = {"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    write_note(tmp_path, AVERAGE)
    assert (tmp_path / f"model.safetensors.index.json{SUFFIX}").exists()
    assert described(tmp_path).parts[0].role == "average"
    save_file({"b": np.zeros(3)}, tmp_path / names[1])
    assert described(tmp_path).parts[0].role == "unknown"


MALFORMED: dict[str, Any] = {
    "no JSON": lambda note: "average",
    "a list": lambda note: json.dumps([note]),
    "without files": lambda note: json.dumps({"polyak": note["polyak"]}),
    "files are numbers": lambda note: json.dumps({**note, "files": 3}),
    "a size is a list": lambda note: json.dumps({**note, "files": {"model.safetensors": []}}),
    "of other files too": lambda note: json.dumps({**note, "files": {**note["files"], "b": {"bytes": 1}}}),
    "resumable": lambda note: json.dumps({**note, "polyak": {**note["polyak"], "role": "resumable"}}),
    "no role": lambda note: json.dumps({**note, "polyak": {**note["polyak"], "role": "better"}}),
    "a step of many digits": lambda note: json.dumps(note).replace('"step": 30', '"step": ' + "3" * 100_000),
    "deep": lambda note: '{"polyak":' * 100_000,
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_note_is_not_believed_and_hides_nothing(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors")
    write_note(path, AVERAGE)
    note = Path(f"{path}{SUFFIX}")
    note.write_text(MALFORMED[kind](json.loads(note.read_text())))
    found = described(path)
    assert [(one.role, one.tensors.elements) for one in found.parts] == [("unknown", 5)]
    assert note.name in found.notes[-1]


def test_a_note_of_several_models_at_once_is_not_taken_for_one(tmp_path: Path) -> None:
    path = tmp_path / "both.pt"
    torch.save({"generator": {"w": torch.ones(2)}, "critic": {"w": torch.ones(2)}}, path)
    write_note(path, AVERAGE)
    assert [one.role for one in described(path).parts] == ["unknown", "unknown"]


def test_averages_are_averaged_as_what_their_notes_say(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"step-{step}.safetensors") for step in (10, 20)]
    for path, step in zip(paths, (10, 20), strict=True):
        write_note(path, replace(AVERAGE, step=step, profile=Profile.from_decay(0.9, step)))
    polyak.average_checkpoints(paths, tmp_path / "both.safetensors")
    profiles = [Profile.from_decay(0.9, step) for step in (10, 20)]
    made = polyak.load(tmp_path / "both.safetensors").header.profile
    assert made is not None
    assert np.allclose(made.weights(), Profile.mix(profiles, [0.5, 0.5]).weights())


def test_nothing_is_noted_of_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    for where in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError):
            write_note(where, AVERAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
