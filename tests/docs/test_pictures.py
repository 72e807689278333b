"""The pictures on the pages are those that docs/pictures/draw.py draws from the committed results."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from docs.pictures import draw
from tests.docs.pages import ROOT

PAGES = [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")]


def test_every_picture_is_on_a_page_and_every_page_has_both_shades() -> None:
    shown = re.compile(r"pictures/([\w.-]+)\.svg(?:#only-(light|dark))?")
    names: set[str] = set()
    for page in PAGES:
        found = shown.findall(page.read_text())
        names |= {name for name, _ in found}
        assert all(name.endswith("-dark") == (shade == "dark") for name, shade in found if shade), page
        light = {name.replace(".zh", "") for name, _ in found if "-dark" not in name}
        assert {f"{name}-dark" for name in light} == {n.replace(".zh", "") for n, _ in found} - light, page
    assert {name.split("-")[0].split(".")[0] for name in names} == {one.__name__ for one in draw.PICTURES}


def test_the_committed_pictures_are_those_of_the_committed_results(tmp_path: Path) -> None:
    committed = sorted(draw.HERE.glob("*.svg"))
    by = re.search(r"Matplotlib v([\d.]+)", committed[0].read_text())
    if by is None or by[1] != mpl.__version__:
        pytest.skip("drawn by another version of matplotlib, whose files differ")
    draw.save(tmp_path)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [path.name for path in drawn] == [path.name for path in committed]
    for ours, theirs in zip(drawn, committed, strict=True):
        assert ours.read_text() == theirs.read_text(), f"{theirs.name}: run make pictures"
