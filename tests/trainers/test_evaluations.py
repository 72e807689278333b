"""Which weights are evaluated, and what their metrics are called."""

from typing import Any

import pytest

import polyak
from polyak.trainers._evaluations import evaluations

TRACKS = ["short", "long"]


@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        (None, {"short": ""}),
        ("long", {"long": ""}),
        ("raw", {"raw": ""}),
        ("both", {"short": "", "raw": "raw/"}),
        (["long", "short"], {"long": "", "short": "ema=short/"}),
        (("raw", "long"), {"raw": "", "long": "ema=long/"}),
    ],
    ids=str,
)
def test_the_first_has_plain_names(evaluate: Any, expected: dict[str, str]) -> None:
    found = evaluations(evaluate, TRACKS)
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("evaluate", ["wide", [], ["short", "short"], ["both"], ["short", "wide"]], ids=str)
def test_anything_else_is_refused(evaluate: Any) -> None:
    with pytest.raises(
        polyak.ConfigError, match=r"evaluate=.*must be 'short', 'long', 'raw', 'both' or a list"
    ):
        evaluations(evaluate, TRACKS)
