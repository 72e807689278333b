"""The examples of docs/trainers.md run where their trainer is installed."""

import runpy
from pathlib import Path

import pytest
import torch

import polyak
from tests.shims import torchvision_without_ops

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "trainers").glob("*.py"))
# What Lightning calls in torch, and its advice about workers; what a run on CPU is told of pinned memory.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("`isinstance\\(treespec, LeafSpec\\)`", "does not have many workers", "pin_memory")
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_without_ops()
    monkeypatch.chdir(tmp_path)
    for name, value in (("HF_HUB_OFFLINE", "1"), ("YOLO_OFFLINE", "True"), ("YOLO_AUTOINSTALL", "False")):
        monkeypatch.setenv(name, value)
    pytest.importorskip(example.stem)
    torch.manual_seed(0)
    done = runpy.run_path(str(example))
    ema = done["ema"] if "ema" in done else done["average"].ema
    assert isinstance(ema, polyak.EMA)
    assert ema.live == "raw"
    assert ema.step > 0
    assert (tmp_path / "runs").exists()


def test_every_trainer_has_an_example() -> None:
    files = {path.stem for path in Path(polyak.__file__).parent.glob("trainers/*.py")}
    assert {path.stem for path in EXAMPLES} == files - {"__init__", "common", "checkpoint"}
