"""Two curves over epochs, as text and as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.errors import CheckpointError
from polyak.report.epochs import drawing, picture

shares = st.floats(0, 1)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=30), st.integers(40, 120), st.booleans())
def test_every_line_fits_and_the_last_epoch_is_marked(
    pairs: list[tuple[float, float]], width: int, ascii_only: bool
) -> None:
    raw, average = map(list, zip(*pairs, strict=True))
    lines = drawing(raw, average, width, 8, ascii_only).splitlines()
    assert len(lines) == 10
    assert max(map(len, lines)) <= width
    assert ("@" if ascii_only else "●") in "".join(line[-1:] for line in lines[:8]) or len(raw) == 1
    assert not ascii_only or "\n".join(lines).isascii()


def test_the_higher_curve_is_drawn_above() -> None:
    lines = drawing([0.90, 0.91, 0.90, 0.91], [0.92, 0.93, 0.94, 0.95], 60).splitlines()
    height = {mark: [y for y, line in enumerate(lines[:-1]) if mark in line] for mark in "○●"}
    assert max(height["●"]) < min(height["○"])
    assert lines[0].startswith(" 95.00%┤")
    assert lines[9].startswith(" 90.00%┤")


def test_the_rise_does_not_flatten_what_follows() -> None:
    """The axis spans at most five times what the second half does, and the early epochs leave it."""
    raw, average = [0.1, 0.5, 0.90, 0.91, 0.90, 0.91], [0.1, 0.4, 0.92, 0.92, 0.93, 0.93]
    text = drawing(raw, average, 80)
    assert text.splitlines()[9].startswith(" 84.00%┤")
    assert text.count("○") == 4 + 1  # and one in the legend


def test_a_run_of_two_epochs_and_one_that_ends_flat_are_drawn_whole() -> None:
    assert drawing([0.80, 0.93], [0.75, 0.93], 60).splitlines()[9].startswith(" 75.00%┤●")
    flat = drawing([0.5, 0.9, 0.9], [0.6, 0.9, 0.9], 60)
    assert flat.splitlines()[9].startswith(" 50.00%┤○")


def test_equal_values_are_a_line_in_the_middle_of_nothing() -> None:
    assert drawing([0.5], [0.5], 40).splitlines()[0].startswith(" 50.00%┤●")


def test_the_picture_is_a_png_of_both_panels(tmp_path: Path) -> None:
    picture({"accuracy": ([0.5, 0.6], [0.6, 0.7]), "loss": ([1.0, 0.8], [0.9, 0.7])}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CheckpointError):
        picture({"accuracy": ([0.5], [0.5]), "loss": ([1.0], [1.0])}, tmp_path / "nowhere" / "a.png")
