"""`polyak convert`, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import polyak
from tests.command_line import Done, polyak_process
from tests.command_line import polyak as command


def convert(*arguments: str | Path) -> Done:
    return command("convert", *arguments)


def both(folder: Path) -> Path:
    torch.manual_seed(0)
    tree = {"model": torch.nn.Linear(3, 2).state_dict(), "ema": torch.nn.Linear(3, 2).state_dict()}
    torch.save(tree, folder / "both.pt")
    return folder / "both.pt"


def test_both_parts(tmp_path: Path) -> None:
    done = polyak_process("convert", both(tmp_path), tmp_path / "out.safetensors", block="torch")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"wrote {tmp_path / 'out-average.safetensors'}: average, 2 tensors",
        f"wrote {tmp_path / 'out-raw.safetensors'}: raw, 2 tensors",
    ]
    assert polyak.load(tmp_path / "out-average.safetensors").header.role == "average"


def test_json_and_names(tmp_path: Path) -> None:
    options = ["--part", "raw", "--names", "torch-to-paddle", "--json"]
    done = convert(both(tmp_path), tmp_path / "out.safetensors", *options)
    assert done.returncode == 0
    [written] = json.loads(done.stdout)["written"]
    assert written == {
        "path": str(tmp_path / "out.safetensors"),
        "part": "raw",
        "role": "raw",
        "tensors": 2,
        "unmatched": [],
        "dropped": [],
    }
    assert load_file(tmp_path / "out.safetensors")["weight"].shape == (3, 2)


def test_a_map_and_its_inverse(tmp_path: Path) -> None:
    rules = [{"from": "weight", "to": "matrix", "transpose": True}, {"from": "(b)ias", "to": r"\1"}]
    (tmp_path / "map.json").write_text(json.dumps({"layers": rules}))
    there = convert(
        both(tmp_path), tmp_path / "there.safetensors", "--part", "raw", "--names", tmp_path / "map.json"
    )
    assert there.returncode == 0
    assert load_file(tmp_path / "there.safetensors").keys() == {"matrix", "b"}
    back = convert(
        tmp_path / "there.safetensors",
        tmp_path / "back.safetensors",
        "--names",
        tmp_path / "map.json",
        "--invert",
    )
    assert back.returncode == 0
    state = torch.load(tmp_path / "both.pt", weights_only=True)["model"]
    read = load_file(tmp_path / "back.safetensors")
    assert all(np.array_equal(read[name], tensor.numpy()) for name, tensor in state.items())


def test_names_left_as_they_are_and_left_out_are_listed(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"layers": [{"from": "weight", "to": None}]}))
    options = ["--part", "raw", "--names", tmp_path / "map.json"]
    done = convert(both(tmp_path), tmp_path / "out.safetensors", *options)
    assert done.stdout.splitlines()[1:] == ["  1 under their own names: bias", "  1 left out: weight"]


def test_back(tmp_path: Path) -> None:
    ema = polyak.EMA(torch.nn.Linear(3, 2), decay=0.9)
    ema.update()
    ema.save(tmp_path / "average.safetensors")
    done = convert(tmp_path / "average.safetensors", tmp_path / "swa.pt", "--to", "swa_utils")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {tmp_path / 'swa.pt'}: swa_utils, 3 tensors\n"
    other = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    other.load_state_dict(torch.load(tmp_path / "swa.pt", weights_only=True))
    line = ["convert", tmp_path / "average.safetensors", tmp_path / "p.pdparams", "--to", "paddle"]
    done = polyak_process(*line, block="torch")
    assert (done.returncode, done.stderr) == (0, "")


def test_torch_is_asked_for_where_it_is_needed(tmp_path: Path) -> None:
    line = ["convert", both(tmp_path), tmp_path / "out.pt", "--to", "torch", "--part", "raw"]
    done = polyak_process(*line, block="torch")
    assert done.returncode == 1
    assert done.stderr == (
        'polyak: PyTorch is not installed. Install it with: pip install "polyak[torch]". '
        "Layers of PaddlePaddle go to polyak.paddle.EMA.\n"
    )


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("out.pt", [], "name it with --to"),
        ("out.safetensors", ["--raw", "x"], "--raw and --updates are for another library's format"),
        ("out.safetensors", ["--part", "teacher"], "part='teacher'"),
        ("out.safetensors", ["--names", "none.json"], "names='none.json'"),
        ("out.safetensors", ["--invert"], "--invert reverses the rules of --names"),
        ("out.pt", ["--to", "ultralytics"], "polyak cannot write this library's files"),
        ("out.pt", ["--to", "timm", "--max-shard-size", "5GB"], "--max-shard-size is for safetensors files"),
        ("out.pt", ["--to", "swa_utils"], "give the number with --updates"),
        ("out.pt", ["--to", "swa_utils", "--updates", "-1"], "updates=-1"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    out: str, options: list[Any], message: str, tmp_path: Path
) -> None:
    done = convert(both(tmp_path), tmp_path / out, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("polyak: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["both.pt"]
