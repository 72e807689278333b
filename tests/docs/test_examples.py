"""What the documentation shows, runs."""

import re
import runpy
from pathlib import Path

import pytest

import polyak

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return [block for block in BLOCK.findall(page.read_text()) if "--8<--" not in block]


def test_there_are_examples_to_run() -> None:
    assert {page.name for page in PAGES if blocks(page)} >= {"README.md", "how-to.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(page)), page.name, "exec"), {})


def test_the_tutorial_runs_and_the_average_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "docs" / "tutorial.py"))
    curves = re.findall(r"raw ([\d.]+)   average ([\d.]+)", capsys.readouterr().out)
    assert len(curves) == 8
    raw, average = (sum(float(pair[i]) for pair in curves) for i in (0, 1))
    assert average < raw, "over the run"
    assert (tmp_path / "average.safetensors").exists()


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    errors = {name for name in polyak.__all__ if name.endswith("Error")}  # the whole tree is one entry
    missing = [name for name in polyak.__all__ if f"::: polyak.{name}\n" not in text and name not in errors]
    assert not missing
    assert "::: polyak.errors\n" in text


@pytest.mark.parametrize("page", [p for p in PAGES if ".zh" not in p.name], ids=lambda page: page.name)
def test_every_page_is_there_in_chinese_with_the_same_code(page: Path) -> None:
    chinese = page.with_name(page.name.replace(".md", ".zh.md"))
    assert chinese.exists()
    strip = re.compile(r"#.*$", re.MULTILINE)  # comments are translated
    code = lambda p: [re.sub(r"\s+", "", strip.sub("", block)) for block in BLOCK.findall(p.read_text())]  # noqa: E731
    assert code(chinese) == code(page)
