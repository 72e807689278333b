"""The recipes run as they stand."""

import runpy
from pathlib import Path

import pytest
import torch

import polyak
from polyak.doctor import examine
from tests.shims import torchvision_without_ops

ROOT = Path(__file__).parents[2]
RECIPES = {
    "plain": ["average.safetensors", "last.pt"],
    "timm": ["last.pth.tar"],
    "diffusion": ["best.safetensors", "snapshots"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_without_ops()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    runpy.run_path(str(ROOT / "docs" / "recipes" / f"{recipe}.py"))
    assert sorted(path.name for path in tmp_path.iterdir()) == RECIPES[recipe]
    for written in tmp_path.glob("*.safetensors"):
        assert polyak.load(written).header.role == "average"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_doctor_finds_nothing_in_it(recipe: str) -> None:
    assert examine(ROOT / "docs" / "recipes" / f"{recipe}.py") == []


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in (ROOT / "docs" / "recipes").glob("*.py")} == set(RECIPES)
