"""What an EMA, a track and a profile look like where they are printed, and in a notebook."""

from xml.etree import ElementTree

import pytest
from torch import nn

import polyak
from polyak import EMA, ConfigError, Profile
from polyak.schedules.drawing import draw


def trained() -> EMA:
    ema = EMA(nn.Linear(2, 1), {"fast & short": 0.9, "long": polyak.HalfLife(share=0.1)})
    for _ in range(1000):
        ema.update()
    return ema


def test_print_gives_a_line_for_each_track() -> None:
    assert str(trained()).splitlines() == [
        "EMA of Linear at step 1,000",
        "  fast & short: Constant(beta=0.9), half-life 6.579 steps, mean age 9 steps, initial weight 1.7e-46",
        "  long: HalfLife(share=0.1), half-life 100 steps, mean age 131.4 steps, initial weight 0",
    ]


def test_a_notebook_gets_numbers_and_a_picture_of_each() -> None:
    ema = trained()
    page = ElementTree.fromstring(f"<page>{ema._repr_html_()}</page>")  # so it is well formed
    text = "".join(page.itertext())
    assert "EMA of Linear at step 1,000" in text
    assert "fast & short" in text
    assert "6.579 steps" in text
    first, second = page.iter("svg")
    assert 10 < len(list(first.iter("rect"))) <= 160
    highest = [max(float(bar.attrib["height"]) for bar in svg.iter("rect")) for svg in (first, second)]
    assert highest == [60, 60]
    heights = [float(bar.attrib["height"]) for bar in second.iter("rect")]
    assert heights == sorted(heights)


def test_a_profile_is_plotted_as_the_command_line_draws_it() -> None:
    profile = Profile.from_decay(0.99, 1000)
    assert profile.plot() == draw(profile)
    assert profile.plot(60, 4, "log") == draw(profile, 60, 4, "log")
    assert "half-life" in profile._repr_html_()


def test_what_is_unknown_is_shown_as_unknown() -> None:
    read = Profile.from_json(Profile.from_decay(lambda t: 0.5, 100).to_json())
    assert "unknown" in read._repr_html_()
    assert "<svg" not in read._repr_html_()
    with pytest.raises(ConfigError, match="unknown"):
        read.plot()


def test_an_empty_profile_is_shown_too() -> None:
    assert "<svg" in Profile.from_decay(0.9, 0)._repr_html_()
