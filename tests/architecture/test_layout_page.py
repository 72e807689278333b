"""docs/layout.md and its picture say what the imports say."""

from __future__ import annotations

import re

import pytest

from tests.architecture import drawing
from tests.architecture.drawing import PICTURE
from tests.architecture.test_arrows import ROOMS, SRC


@pytest.mark.parametrize("page", ["layout.md", "layout.zh.md"])
def test_the_page_lists_every_room_in_order(page: str) -> None:
    text = PICTURE.with_name(page).read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*ROOMS]


@pytest.mark.parametrize("page", ["layout.md", "layout.zh.md"])
def test_where_to_start_reading_is_there(page: str) -> None:
    files = re.findall(r"`([\w/]+\.py)`", PICTURE.with_name(page).read_text())
    assert len(files) > 5
    assert [name for name in files if not (SRC / name).is_file()] == []


def test_the_picture_is_drawn_from_the_imports() -> None:
    drawn = drawing.svg(drawing.imported())
    assert PICTURE.read_text() == drawn, "run: python -m tests.architecture.drawing"


def test_an_arrow_that_follows_from_others_is_left_out() -> None:
    graph = {"cli": {"core", "files"}, "core": {"files"}, "files": set[str]()}
    assert drawing.reduced(graph) == {"cli": {"core"}, "core": {"files"}, "files": set()}
    assert drawing.layers_of(drawing.reduced(graph)) == {"cli": 2, "core": 1, "files": 0}


def test_arrows_are_untangled() -> None:
    rows, arrows = [["a", "b"], ["c", "d"]], [["c", "b"], ["d", "a"]]
    assert drawing.crossings(rows, arrows) == 1
    assert drawing.crossings(drawing.untangled(rows, arrows), arrows) == 0
