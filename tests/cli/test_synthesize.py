"""`polyak synthesize` as a person and as a script run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from tests.command_line import Done
from tests.command_line import polyak as command


def run(*arguments: str) -> Done:
    return command("synthesize", *arguments, COLUMNS="100")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("archive") / "snapshots"
    torch.manual_seed(0)
    ema = polyak.EMA(nn.Linear(3, 2), {"a": polyak.Power(gamma=20), "b": polyak.Power(gamma=6)})
    with polyak.Archive(folder, ema, every=10, dtype="float32", keep="all"):
        for _ in range(400):
            with torch.no_grad():
                for parameter in ema.model.parameters():
                    parameter += 0.01 * torch.randn(parameter.shape)
            ema.update()
    return str(folder)


@pytest.mark.parametrize(
    ("asked", "decay"),
    [
        (["--half-life", "60"], polyak.HalfLife(steps=60)),
        (["--decay", "0.99"], polyak.Constant(0.99)),
        (["--sigma-rel", "0.1"], polyak.Power(sigma_rel=0.1)),
        (["--last", "100"], polyak.Anneal(100, "linear")),
        (["--last", "100", "--shape", "cosine"], polyak.Anneal(100)),
    ],
)
def test_it_writes_the_average_asked_for(
    archive: str, tmp_path: Path, asked: list[str], decay: polyak.Decay
) -> None:
    out = tmp_path / "made.safetensors"
    done = run(archive, *asked, "-o", str(out), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    average = polyak.load(out)
    assert average.header.decay == decay
    assert figures == {
        "out": str(out),
        "step": 400,
        "error": figures["error"],
        "noise_gain": figures["noise_gain"],
    }
    last = 100 if "--last" in asked else None
    assert figures["error"] == polyak.synthesize(archive, decay, last=last).error < 0.02


def test_a_person_reads_what_was_made(archive: str, tmp_path: Path) -> None:
    done = run(archive, "--half-life", "60", "--at", "300", "-o", str(tmp_path / "a.safetensors"))
    assert done.returncode == 0
    assert "step 300, expected error 0." in done.stdout


def test_without_a_file_it_lists_what_is_reachable(archive: str) -> None:
    table = run(archive)
    assert table.returncode == 0
    assert "expected error" in table.stdout
    rows = json.loads(run(archive, "--json").stdout)["reachable"]
    near = [row for row in polyak.synthesizable(archive) if row.error <= 0.02]
    assert [row["half_life"] for row in rows] == [row.half_life for row in near]
    assert f"{near[0].half_life:,.4g} " in table.stdout


def test_what_is_not_reachable_is_left_out_and_counted(archive: str) -> None:
    reach = polyak.synthesizable(archive)
    strict = run(archive, "--max-error", "0.001")
    near = [row for row in reach if row.error <= 0.001]
    assert strict.stdout.count("%") == len(near) + 1
    assert f"left out        {len(reach) - len(near)} half-lives between " in strict.stdout
    assert "their error is above 0.10% (--max-error)" in strict.stdout
    assert "noise gain      worst amplification of the snapshots' rounding errors; 1 is best" in strict.stdout
    none = run(archive, "--max-error", "1e-9")
    assert none.returncode == 0
    assert none.stdout.startswith(f"left out        {len(reach)} half-lives ")
    assert "left out" not in run(archive, "--max-error", "9").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one of --half-life"),
        (["--half-life", "3", "--decay", "0.9"], "exactly one of --half-life"),
        (["--half-life", "-3"], "steps=-3"),
        (["--half-life", "0.5"], r"with an expected error of"),
        (["--half-life", "60", "--at", "9999"], "at=9999"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_status_1(
    archive: str, tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run(archive, *arguments, "-o", str(tmp_path / "a.safetensors"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.startswith("polyak: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    done = run(str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "holds no snapshots" in done.stderr
