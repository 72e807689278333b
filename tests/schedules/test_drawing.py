"""The drawing of a profile: what its bars add up to, and that it fits the screen."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import polyak
from polyak import Profile
from polyak.schedules.drawing import Scale, binned, draw


def bars_of(text: str) -> list[str]:
    """The cells right of the axis, top line first."""
    return [line[11:] for line in text.splitlines() if re.match(r".{10}[┤│]", line)]


@pytest.mark.parametrize(
    "profile",
    [
        Profile.from_decay(0.999, steps=20_000),
        Profile.from_decay(polyak.Power(sigma_rel=0.1), steps=100_000),
        Profile.from_decay(polyak.Uniform(), steps=1000),
        Profile.from_decay(0.9999, steps=200),
        Profile.raw(0),
        Profile.raw(70),
        Profile.mix([Profile.from_decay(0.99, 500), Profile.from_decay(0.999, 500)], [-1, 2]),
    ],
)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_every_line_fits(profile: Profile, scale: Scale) -> None:
    for width in (40, 80, 200):
        for height in (2, 3, 10):
            lines = draw(profile, width, height, scale).splitlines()
            assert max(map(len, lines)) <= width
            assert len(bars_of("\n".join(lines))) in (height, height + 1)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40_000), st.integers(1, 120), st.floats(0.5, 0.9999))
def test_columns_hold_all_weights(steps: int, columns: int, beta: float) -> None:
    profile = Profile.from_decay(beta, steps)
    bars = binned(profile, columns)
    weights = profile.weights()
    assert bars.last == steps
    assert bars.widths.sum() == bars.last - bars.first + 1
    assert bars.heights @ bars.widths == pytest.approx(weights[bars.first :].sum())
    assert bars.share == pytest.approx(weights[bars.first :].sum())
    assert weights[: bars.first].sum() <= 1e-3 < weights[: bars.first + 1].sum() + 1e-12
    if columns >= bars.last - bars.first + 1:
        assert np.allclose(bars.heights, weights[bars.first :])


def test_a_uniform_profile_is_a_plain() -> None:
    rows = bars_of(draw(Profile.from_decay(polyak.Uniform(), steps=68), width=80, height=4))
    assert {row.strip() for row in rows} == {"█" * len(rows[0].strip())}


def test_the_halves_of_a_step_function_differ() -> None:
    half = Profile.mix(
        [Profile.from_decay(polyak.Uniform(), 34), Profile.from_decay(polyak.Uniform(), 68)], [0.5, 0.5]
    )
    top, *_, bottom = bars_of(draw(half, width=80, height=3))
    assert top.rstrip() == " " + "█" * 34 or top.rstrip() == "█" * 34  # step 0 has no weight
    assert len(bottom.rstrip()) >= 68


def test_weights_below_zero_hang_under_the_axis() -> None:
    profile = Profile.mix([Profile.raw(10), Profile.raw(20)], [-0.5, 1.5])
    text = draw(profile, width=80, height=8)
    rows = bars_of(text)
    above = [i for i, row in enumerate(rows) if row.rstrip().endswith("█") and len(row.rstrip()) > 60]
    below = [i for i, row in enumerate(rows) if 0 < len(row.rstrip()) < 10]
    assert above
    assert below
    assert max(above) < min(below)
    assert "-0.5" in text


def test_a_bar_that_dwarfs_all_others_is_cut_and_told() -> None:
    profile = Profile.from_decay(
        0.9999, steps=2000
    )  # four fifths still rest on θ₀, 28 steps share its column
    text = draw(profile)
    rows = bars_of(text)
    assert rows[0].startswith("▲")
    assert "▲ this bar is cut: its steps have 82.1%" in text
    assert rows[3].count("█") > 20  # the others are seen
    assert "▲" not in draw(profile, scale="log")
    assert "▲" not in draw(Profile.raw(3))


def test_decades_are_even_steps() -> None:
    profile = Profile.from_decay(0.9, steps=131)  # 10⁻⁶ after 131 steps
    rows = bars_of(draw(profile, width=80, height=6, scale="log"))
    lengths = [len(row.strip()) for row in rows]
    steps = np.diff(lengths)
    assert steps.min() > 0
    assert steps.max() - steps.min() <= 3


def test_labels() -> None:
    text = draw(Profile.from_decay(0.999, steps=20_000))
    assert re.search(r"0\.00095\d? ┤", text)
    assert "20,000" in text
    assert re.search(r"99\.9\d*% of it is shown", text)
    assert "all of it" in draw(Profile.raw(5))
