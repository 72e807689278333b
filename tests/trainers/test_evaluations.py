"""Which weights are evaluated, and what their metrics are called."""

from typing import Any

import pytest

import polyak
from polyak.trainers._evaluations import evaluable, evaluations

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


def test_the_followed_track_comes_first_and_may_be_named() -> None:
    names = evaluable(polyak.Adaptive(low=1, high=100, points=3))
    assert evaluations(None, names) == {"following": ""}
    assert evaluations("both", names) == {"following": "", "raw": "raw/"}
    assert evaluations(["raw", "following", "h10"], names) == {
        "raw": "", "following": "ema=following/", "h10": "ema=h10/"
    }  # fmt: skip
    assert evaluable({"short": 0.9, "long": 0.99}) == TRACKS
