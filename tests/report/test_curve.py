"""The curve of a sweep, in the terminal and as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyak import CheckpointError, MissingExtraError
from polyak.report.curve import caption, drawing, picture
from polyak.select.evaluate import RawTrial, SweepRecord, Trial


def record(*metrics: float | None, ratio: float = 10.0, mode: Any = "max") -> SweepRecord:
    """Half-lives 1, 10, 100, … with these metrics."""
    made = SweepRecord(Path("nowhere"), "a run", 400, "eval {weights}", mode)
    made.trials = [Trial(ratio**i, m, None if m is not None else "no") for i, m in enumerate(metrics)]
    return made


def test_a_curve_literally() -> None:
    assert drawing(record(0.1, 0.5, 0.9, 0.3), width=44, height=5).splitlines() == [
        "0.9 ┤                      ···●··",
        "    │                 ·····      ····",
        "    │          ···○···               ····",
        "    │    ······                          ··○",
        "0.1 ┤○···",
        "    └───────────────────────────────────────",
        "     1    half-life, training steps    1,000",
    ]
    assert drawing(record(0.1, 0.1), width=40, height=3).splitlines() == [
        "    │",
        "0.1 ┤●·································○",
        "    │",
        "    └───────────────────────────────────",
        "     1   half-life, training steps    10",
    ]


def test_where_less_is_better_the_lowest_is_marked() -> None:
    lines = drawing(record(0.1, 0.5, 0.9, 0.3, mode="min"), width=60).splitlines()
    assert [line.count("●") for line in lines].index(1) == 11
    assert lines[11].startswith("0.1 ┤●")


def test_what_failed_is_not_drawn_and_one_point_is_a_curve() -> None:
    text = drawing(record(None, 0.5, None), width=60)
    assert text.count("●") == text.count("0.5 ┤") == 1
    assert "○" not in text
    assert drawing(record(0.5, 0.5), width=60).count("○") == 1


def test_a_plain_terminal_gets_plain_characters() -> None:
    text = drawing(record(0.1, 0.5, 0.9, 0.3), ascii_only=True)
    assert text.isascii()
    assert text.count("@") == 1
    assert text.count("o") == 3


def test_the_raw_weights_stand_left_of_the_shortest_half_life() -> None:
    made = record(0.1, 0.5, 0.9, 0.3)
    made.raw = RawTrial("raw.safetensors", 0.5)
    lines = drawing(made, width=48, height=5).splitlines()
    assert lines[2].startswith("    │ ×")
    assert lines[4].startswith("0.1 ┤    ○···")
    assert lines[6] == "     raw 1    half-life, training steps    1,000"
    made.raw = RawTrial("raw.safetensors", -0.3)
    assert drawing(made, ascii_only=True).splitlines()[11].startswith("-0.3 + x")
    made.raw = RawTrial("raw.safetensors", None, "no")
    assert "raw" not in drawing(made)


METRICS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


@settings(deadline=None)
@given(
    METRICS,
    st.none() | st.floats(-1e6, 1e6),
    st.integers(40, 200),
    st.integers(3, 40),
    st.floats(1.001, 100),
)
def test_a_drawing_fits_and_marks_one_best(
    metrics: list[float], raw: float | None, width: int, height: int, ratio: float
) -> None:
    made = record(*metrics, ratio=ratio)
    made.raw = RawTrial("raw.safetensors", raw)
    lines = drawing(made, width, height).splitlines()
    assert sum(line.count("×") for line in lines) == (raw is not None)
    assert len(lines) == height + 2
    assert max(map(len, lines)) <= width
    assert sum(line.count("●") for line in lines) == 1
    points = sum(line.count("○") for line in lines) + 1
    assert points <= len(metrics)


def test_the_best_stands_at_the_top_even_among_neighbours() -> None:
    """Points in one cell: the best is drawn over the others."""
    lines = drawing(record(0.5, 0.6, 0.7, 0.5, ratio=1.0001), width=40).splitlines()
    assert sum(line.count("●") for line in lines) == 1
    assert "●" in lines[0]


def test_the_caption_says_metric_and_half_life() -> None:
    assert caption(Trial(12345.6, 0.123456789)) == "best: 0.123457 at a half-life of 1.235e+04 training steps"


def colours(path: Path) -> dict[tuple[int, ...], int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return {c: n for n, c in image.convert("RGB").getcolors(1 << 20) or []}  # pyright: ignore


RED, BLUE, GREY = (214, 39, 40), (31, 119, 180), (127, 127, 127)


def test_a_picture_has_a_curve_a_star_and_crosses(tmp_path: Path) -> None:
    picture(record(0.1, 0.5, None, 0.9, 0.3), tmp_path / "a.png")
    seen = colours(tmp_path / "a.png")
    assert min(seen[RED], seen[BLUE], seen[GREY]) > 20
    picture(record(0.1, 0.5, 0.9, 0.3), tmp_path / "a.png")
    assert seen[GREY] > 2 * colours(tmp_path / "a.png").get(GREY, 0)
    without = colours(tmp_path / "a.png")
    made = record(0.1, 0.5, 0.9, 0.3)
    made.raw = RawTrial("raw.safetensors", 0.4)
    picture(made, tmp_path / "a.png")
    black = (0, 0, 0)
    assert colours(tmp_path / "a.png")[black] > without[black] + 100
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_star_stands_where_the_best_is(tmp_path: Path) -> None:
    """In the corner of the shortest half-life, or of the longest; the legend's star keeps off the curve."""

    def in_corner(left: bool, *metrics: float) -> int:
        picture(record(*metrics), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            width, height = image.size
            pixels = image.convert("RGB").load()
            assert pixels is not None
            columns = range(width * 3 // 20) if left else range(width * 9 // 10, width)
            return sum(pixels[x, y] == RED for x in columns for y in range(height * 3 // 20))

    assert in_corner(True, 0.9, 0.5, 0.3, 0.1) > 100
    assert in_corner(False, 0.1, 0.3, 0.5, 0.9) > 100


def test_without_matplotlib_the_pip_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r'pip install "polyak\[plot\]"'):
        picture(record(0.1, 0.5), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing/a.png cannot be written"):
        picture(record(0.1, 0.5), tmp_path / "missing" / "a.png")
