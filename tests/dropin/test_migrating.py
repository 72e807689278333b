"""The pages from-*: only the import line changes, the average stays, every difference is listed."""

import os
import re
import subprocess
from difflib import ndiff
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import polyak
from tests.docs.pages import HOW_TO, MIGRATIONS, Run, run, same_path
from tests.dropin.side import close
from tests.shims import torchvision_without_ops

HERE = Path(__file__).parent
MARK = "\n# What is different.\n"
TEXTS = {path.stem: path.read_text() for path in sorted(HERE.glob("test_*.py")) if path != Path(__file__)}
DIFFERING = {name: text for name, text in TEXTS.items() if MARK in text}
ORIGINALS = {
    "from-diffusers": "diffusers",
    "from-ema-pytorch": "ema_pytorch",
    "from-mmengine": "mmengine.model",
    "from-post-hoc-ema": "ema_pytorch",
    "from-timm": "timm",
    "from-timm-script": "timm.task",
    "from-torch-ema": "torch_ema",
    "from-ultralytics-ema": "ultralytics",
}
COUNTED = {"from-ema-pytorch", "from-ultralytics-ema"}  # whose counters stand still in the original
ONE_AVERAGE = [page for page in MIGRATIONS if page != "from-post-hoc-ema"]


def both(page: str, other: str, folder: Path) -> tuple[Run, Run]:
    """What a page begins with, and what it offers instead."""
    torchvision_without_ops()
    if page in ORIGINALS:
        pytest.importorskip(ORIGINALS[page])
    before, after = (run(page, script, folder) for script in ("before", other))
    assert same_path(before, after)
    return before, after


def agree(page: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> None:
    """Equal to float32 rounding, but for counters that stand still in the original."""
    for name, tensor in theirs.items():
        if page not in COUNTED or not name.endswith("num_batches_tracked"):
            close(tensor, ours[name], f"{page}: {name}")


@pytest.mark.parametrize("page", MIGRATIONS)
def test_only_the_import_line_is_new(page: str) -> None:
    before, after = ((HOW_TO / page / f"{name}.py").read_text().splitlines() for name in ("before", "after"))
    new = [line[2:] for line in ndiff(before, after) if line[0] == "+" and line[2:].strip()]
    assert new[0].startswith("from polyak.dropin.")
    assert len(new) == (2 if page == "from-timm-script" else 1)


@pytest.mark.parametrize("page", ONE_AVERAGE)
def test_the_average_is_the_originals(page: str, tmp_path: Path) -> None:
    before, after = both(page, "after", tmp_path)
    theirs, ours = before.average, after.average
    assert list(theirs) == list(ours)
    agree(page, theirs, ours)
    if "accuracy" in before.variables:
        assert before.variables["accuracy"] == after.variables["accuracy"] > 0.85
    raw = [p for p in before.path[-1] if p.ndim > 1]
    assert not any(torch.equal(mine, p) for mine in ours.values() for p in raw if mine.shape == p.shape)


@pytest.mark.parametrize("page", [page for page in ONE_AVERAGE if (HOW_TO / page / "native.py").exists()])
def test_so_is_that_of_polyak_ema(page: str, tmp_path: Path) -> None:
    before, native = both(page, "native", tmp_path)
    theirs, ours = before.average, native.average
    assert {name for name, _ in native.variables["model"].named_parameters()} <= set(ours) <= set(theirs)
    agree(page, {name: theirs[name] for name in ours}, ours)
    assert before.variables["accuracy"] == native.variables["accuracy"]
    assert polyak.load(native.folder / "average.safetensors").header.role == "average"


def test_checkpoints_of_timms_script_are_converted_as_its_page_says(tmp_path: Path, warm_path: str) -> None:
    torchvision_without_ops()
    pytest.importorskip("timm.task")
    kept = run("from-timm-script", "after", tmp_path)
    (command,) = re.findall(r"^polyak (.*)$", (HOW_TO / "from-timm-script.md").read_text(), re.MULTILINE)
    environment = os.environ | {"PATH": warm_path}
    line = ["polyak", *command.split()]
    subprocess.run(line, cwd=kept.folder, env=environment, check=True, capture_output=True)
    written = load_file(kept.folder / "average.safetensors")
    theirs = torch.load(kept.folder / "last.pth.tar")["state_dict_ema"]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in written.items())
    assert polyak.load(kept.folder / "average.safetensors").header.role == "average"


def test_post_hoc_averages_are_nearer_to_what_was_wanted(tmp_path: Path) -> None:
    pytest.importorskip("ema_pytorch")
    runs = [run("from-post-hoc-ema", script, tmp_path) for script in ("before", "after", "native")]
    beta = polyak.Power(sigma_rel=0.15)
    wanted = [p.double() for p in runs[0].path[0]]
    for t, parameters in enumerate(runs[0].path, 1):
        wanted = [beta(t) * w + (1 - beta(t)) * p.double() for w, p in zip(wanted, parameters, strict=True)]
    names = [name for name, _ in runs[0].variables["model"].named_parameters()]
    errors = [
        max(float((of.average[n] - w).norm() / w.norm()) for n, w in zip(names, wanted, strict=True))
        for of in runs
    ]
    assert same_path(runs[0], runs[1])
    assert same_path(runs[0], runs[2])
    assert errors[1] < errors[0] < 0.01
    assert errors[2] < 0.01


def listed(text: str) -> dict[str, list[str]]:
    """File to the tests below the heading of its table."""
    found: dict[str, list[str]] = {}
    for section in text.split("\n## ")[1:]:
        for name in re.findall(r"`tests/dropin/(\w+)\.py`", section):
            found[name] = re.findall(r"\| `(test_\w+)` \|", section)
    return found


@pytest.mark.parametrize("language", [".md", ".zh.md"])
@pytest.mark.parametrize("name", DIFFERING)
def test_each_difference_is_listed_and_each_test_listed_exists(name: str, language: str) -> None:
    tables = [listed((HOW_TO / f"{page}{language}").read_text()) for page in MIGRATIONS]
    (tests,) = [table[name] for table in tables if name in table]
    differing = re.findall(r"^def (test_\w+)", DIFFERING[name].split(MARK)[1], re.MULTILINE)
    assert set(differing) <= set(tests)
    assert set(tests) <= set(re.findall(r"^def (test_\w+)", DIFFERING[name], re.MULTILINE))
    assert len(tests) == len(set(tests)) > 3


def test_every_drop_in_of_torch_has_a_page() -> None:
    modules = {path.stem for path in (Path(polyak.__file__).parent / "dropin").glob("[a-z]*.py")}
    modules = {name for name in modules if not name.startswith("paddle_")}  # of another environment
    used = {
        module
        for page in MIGRATIONS
        for module in re.findall(r"from polyak\.dropin\.(\w+)", (HOW_TO / page / "after.py").read_text())
    }
    assert used == modules
