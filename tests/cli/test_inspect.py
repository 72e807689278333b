"""`polyak inspect`, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import polyak
from tests.command_line import Done, polyak_process
from tests.command_line import polyak as command


def inspect(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> Done:
    return command("inspect", *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    ema = polyak.EMA(torch.nn.Linear(20, 30), {"short": 0.95, "long": 0.999})
    with polyak.Archive(folder / "archive", ema, every=100):
        for _ in range(500):
            ema.update()
    with pytest.warns(UserWarning, match="61% of the average 'long' is still the weights it began with"):
        ema.save(folder / "average.safetensors", track="long")
    ema.save(folder / "raw.safetensors", track="raw")
    ema.save(folder / "state.safetensors", resumable=True)
    torch.save({"model": ema.module.state_dict(), "ema": ema.module.state_dict()}, folder / "both.pt")
    return folder


def test_an_average(files: Path) -> None:
    shown = inspect(files / "average.safetensors")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0] == f"{files / 'average.safetensors'}: average, polyak, step 500"
    assert lines[1:8] == [
        "long",
        "  role              average",
        "  tensors           2 (2 float32), 630 parameters, 2.5 kB",
        "  schedule          Constant(beta=0.999)",
        f"  mean age          {polyak.Profile.from_decay(0.999, 500).mean_age:,.6g} steps",
        "  half-life         500 steps",
        f"  effective samples {polyak.Profile.from_decay(0.999, 500).effective_samples:,.6g}",
    ]
    assert lines[8] == "  initial weight    0.606"
    assert lines[-1] == "  integrity         verified"


def test_the_drawing(files: Path) -> None:
    shown = inspect(files / "state.safetensors", "--plot")
    assert shown.returncode == 0
    text = shown.stdout[shown.stdout.index("\n\nshort") :]
    assert text.count("weight of each training step") == 2  # one drawing for each track
    assert max(map(len, text.splitlines())) <= 80
    assert "█" in text
    logarithmic = inspect(files / "average.safetensors", "--log").stdout
    assert "logarithmic" in logarithmic


def test_nothing_to_draw(files: Path) -> None:
    shown = inspect(files / "raw.safetensors", "--plot")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "holds no average with a profile that could be drawn" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_an_archive(files: Path) -> None:
    shown = inspect(files / "archive")
    assert shown.returncode == 0
    assert "  tracks            long, short" in shown.stdout
    assert "from 0 to 500" in shown.stdout
    assert "expected error" in shown.stdout


def test_a_foreign_file(files: Path) -> None:
    shown = inspect(files / "both.pt")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0].endswith("both.pt: pytorch, of no library that is known")
    assert "  role              average, under the key ema" in lines
    assert "  role              raw, under the key model" in lines
    assert "  note              an average by its key 'ema' alone" in lines


def test_json(files: Path) -> None:
    for name in ("average.safetensors", "state.safetensors", "both.pt", "archive"):
        shown = inspect(files / name, "--json")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert json.loads(shown.stdout)["where"] == str(files / name)


def test_a_damaged_file(files: Path, tmp_path: Path) -> None:
    data = bytearray((files / "average.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    for options in ([], ["--json"]):
        shown = inspect(tmp_path / "bad.safetensors", *options)
        assert (shown.returncode, shown.stdout) == (1, "")
        assert "is damaged: tensor weight is not the one that was written" in shown.stderr
    assert inspect(tmp_path / "bad.safetensors", "--no-verify").returncode == 0


def test_no_torch_is_needed(files: Path) -> None:
    shown = polyak_process("inspect", files / "both.pt", block="torch")
    assert (shown.returncode, shown.stderr) == (0, "")


def table(shown: Done) -> list[list[str]]:
    lines = [line for line in shown.stdout.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_several_files_are_one_table(files: Path) -> None:
    names = ("average.safetensors", "raw.safetensors", "both.pt", "archive", "state.safetensors")
    shown = inspect(*names, cwd=files, COLUMNS="100")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert table(shown) == [
        ["average.safetensors", "average", "500", "500", "60.6%", "630"],
        ["raw.safetensors", "raw", "500", "", "", "630"],
        ["both.pt", "average", "", "", "", "630"],
        ["", "raw", "", "", "", "630"],
        ["archive", "archive, 11 files", "500", "", "", ""],
        ["state.safetensors", "average short", "500", "13.51", "0.0%", "630"],
        ["", "average long", "", "500", "60.6%", "630"],
    ]


def test_globs_and_folders_stand_for_the_checkpoints_in_them(files: Path, tmp_path: Path) -> None:
    once = json.loads(inspect(files, "--json").stdout)["checkpoints"]
    names = ["archive", "average.safetensors", "both.pt", "raw.safetensors", "state.safetensors"]
    assert [one["where"] for one in once] == [str(files / name) for name in names]
    again = json.loads(inspect(files / "*.safetensors", files / "raw.safetensors", "--json").stdout)
    assert [Path(one["where"]).stem for one in again["checkpoints"]] == ["average", "raw", "state"]
    one = json.loads(inspect(files / "av*", "--json").stdout)
    assert one["where"] == str(files / "average.safetensors")
    none = inspect(tmp_path / "*.pt")
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr == f"polyak: {tmp_path / '*.pt'}: no file has such a name.\n"
    assert "holds no checkpoint" in inspect(tmp_path).stderr


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    ema = polyak.EMA(torch.nn.Linear(20, 30), 0.99)
    ema.save(tmp_path / "large.safetensors", max_shard_size="1KB")
    ema.save(tmp_path / "small.safetensors")
    assert len(list(tmp_path.iterdir())) > 3
    shown = json.loads(inspect(tmp_path, "--json").stdout)["checkpoints"]
    assert [Path(one["where"]).name for one in shown] == ["large.safetensors.index.json", "small.safetensors"]
    assert [one["parts"][0]["tensors"]["count"] for one in shown] == [2, 2]


def test_of_several_the_one_that_cannot_be_read_is_named_and_the_status_is_1(
    files: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.pt").write_text("no checkpoint at all")
    shown = inspect(tmp_path / "bad.pt", files / "raw.safetensors", files / "average.safetensors")
    assert shown.returncode == 1
    assert shown.stderr.startswith(f"polyak: {tmp_path / 'bad.pt'} is not a valid safetensors file")
    assert shown.stderr.count("\n") == 1
    assert [row[1:4] for row in table(shown) if row[-1]] == [["raw", "500", ""], ["average", "500", "500"]]


def test_the_profiles_of_several_are_drawn_below_the_table(files: Path) -> None:
    shown = inspect(files / "average.safetensors", files / "raw.safetensors", "--plot")
    assert shown.returncode == 0
    assert f"\n\n{files / 'average.safetensors'}: long\n" in shown.stdout
    assert shown.stdout.count("weight of each training step") == 1


def test_a_dumb_terminal_gets_a_plain_table(files: Path) -> None:
    shown = inspect(files, TERM="dumb")
    assert shown.returncode == 0
    assert shown.stdout.isascii()
