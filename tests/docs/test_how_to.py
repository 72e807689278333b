"""The pages of docs/how-to show the scripts beside them, and what they say changes between them does."""

import re
from difflib import ndiff
from pathlib import Path

import pytest
import torch

import polyak
from tests.docs.pages import FOLDERS, HOW_TO, PAIRS, ROOT, run, same_path

DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)


def scripts(page: str) -> list[Path]:
    return sorted((HOW_TO / page).glob("*.py"))


def changed(lines: list[str]) -> list[str]:
    return [line.rstrip() for line in lines if line[0] in "+-" and line[1:].strip()]


@pytest.mark.parametrize("page", FOLDERS)
def test_a_page_shows_every_script_beside_it(page: str) -> None:
    names = {script.stem for script in scripts(page)}
    if page in PAIRS:
        assert {"before", "after"} <= names <= {"before", "after", "native"}
    shown = re.findall(r'--8<-- "docs/how-to/(.*)"', (HOW_TO / f"{page}.md").read_text())
    assert sorted(shown) == [f"{page}/{script.name}" for script in scripts(page)]


@pytest.mark.parametrize("page", PAIRS)
def test_the_change_a_page_shows_is_the_change_made(page: str) -> None:
    before, after = ((HOW_TO / page / f"{name}.py").read_text().splitlines() for name in ("before", "after"))
    made = [line[0] + line[2:] for line in ndiff(before, after) if line[0] in "+- "]
    for shown in DIFF.findall((HOW_TO / f"{page}.md").read_text()):
        assert changed(shown.splitlines()) == changed(made)
        assert {line[1:] for line in shown.splitlines() if line[0] == " "} <= set(before)


@pytest.mark.parametrize("language", ["", ".zh"])
def test_every_page_is_found(language: str) -> None:
    pages = {path.name.partition(".")[0] for path in HOW_TO.glob(f"*{language}.md")} - {"index"}
    assert pages >= set(FOLDERS)
    text = (HOW_TO / f"index{language}.md").read_text()
    listed = re.findall(r"^\| \[.*?\]\(([\w-]+)\.md\)", text, re.MULTILINE)
    assert sorted(listed) == sorted(pages)
    navigation = re.findall(r"- how-to/([\w-]+)\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(navigation) == sorted([*pages, "index"])


def test_a_loop_of_your_own_trains_as_before_and_is_evaluated_on_the_average(tmp_path: Path) -> None:
    before, after = (run("plain", script, tmp_path) for script in ("before", "after"))
    assert same_path(before, after)
    ema, model = after.variables["ema"], after.variables["model"]
    images, labels = after.variables["images"][1500:], after.variables["labels"][1500:]
    average, raw = ((net(images).argmax(1) == labels).float().mean() for net in (ema, model))
    assert after.variables["accuracy"] == average
    assert before.variables["accuracy"] == raw != average
    assert ema.step == len(after.path) == 60
    kept = torch.load(after.folder / "last.pt", weights_only=True)
    model.load_state_dict(kept["model"])
    polyak.EMA(model, polyak.Warmup(0.99)).load_state_dict(kept["ema"])
    assert polyak.load(after.folder / "average.safetensors").header.role == "average"


def test_the_width_chosen_afterwards_beats_the_raw_weights(tmp_path: Path) -> None:
    before, after = (run("diffusion", script, tmp_path) for script in ("before", "after"))
    assert same_path(before, after)
    losses = after.variables["held_out"]
    assert losses[after.variables["best"]] == min(losses.values()) < before.variables["held_out"]
    assert len(set(losses.values())) == 4
    assert polyak.load(after.folder / "best.safetensors").header.role == "average"
