"""The examples that --help shows do what they say."""

from __future__ import annotations

import shlex
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

import polyak
from polyak.cli import EXAMPLES
from polyak.cli.serve import serve
from polyak.cli.watch import watch
from tests.command_line import polyak as polyak_command
from tests.warm import COLD

EVALUATE = """
import sys
print(len(open(sys.argv[1], "rb").read()))
"""
# What makes an example short enough for a test.
QUICK = {"demo": "--epochs 1", "bench": "--rounds 1", "sweep": "--points 2 --refine 0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    model = torch.nn.Linear(4, 2)
    ema = polyak.EMA(model, {"short": polyak.Power(gamma=20), "long": polyak.Power(gamma=6)})
    with polyak.Archive(folder / "snapshots", ema, every=20):
        for step in range(1, 2001):
            with torch.no_grad():
                model.weight += 0.01 * torch.randn(2, 4)
            ema.update()
            if step % 500 == 0:
                torch.save(model.state_dict(), folder / f"step-{step}.pt")
    torch.save({"model": model.state_dict(), "ema": ema.module.state_dict()}, folder / "checkpoint.pt")
    for scale, name in ((1000, "new"), (1, "best"), (1, "a"), (1, "b")):
        torch.save(torch.zeros(scale), folder / f"{name}.pt")
    ema.save(folder / "average.safetensors")
    (folder / "eval.py").write_text(EVALUATE)
    (folder / "mine.py").write_text("import torch\nfactory = lambda: torch.nn.Linear(2, 1)\n")
    for run in ("a", "b"):
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "metrics.csv").write_text("step,val_loss,raw/val_loss\n1,0.5,0.6\n")
    for script in ("train.py", "src/train.py", "notebooks/train.ipynb"):
        (folder / script).parent.mkdir(exist_ok=True)
        (folder / script).write_text('{"cells": []}' if script.endswith("ipynb") else "pass\n")
    return folder


# These end at a signal: tests/server/test_recipes.py and tests/cli/test_watch.py run them.
@pytest.mark.parametrize(
    "line", [line for command in EXAMPLES if command not in (serve, watch) for line in EXAMPLES[command]]
)
def test_an_example_runs(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())  # bench looks for the user's module where it is run
    quick = "" if "--plan" in line else QUICK.get(line.split()[1], "")
    name, *words = shlex.split(f"{line} {quick}")
    files = [sorted(path.name for path in folder.glob(word)) if "*" in word else [word] for word in words]
    done = polyak_command(*chain.from_iterable(files), cwd=folder, PATH=COLD)
    sys.modules.pop("mine", None)
    assert name == "polyak"
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_shows_its_own_examples() -> None:
    for command, lines in EXAMPLES.items():
        assert all(line.startswith(f"polyak {command.__name__}") for line in lines)
        text = polyak_command(command.__name__, "--help", TERM="dumb").stdout
        assert [line.strip() for line in text.splitlines() if line.strip() in lines] == list(lines)
