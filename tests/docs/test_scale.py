"""The page on many processes shows what the formulas give now."""

from __future__ import annotations

from benchmarks.scale import RESULT, page


def test_the_table_is_that_of_the_formulas() -> None:
    assert RESULT.read_text() == page()
