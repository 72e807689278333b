"""The demo's table: computed from the committed report, the same in every place that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tutorial.table import RATES, WORDS, cell, report, rows, table

ROOT = Path(__file__).parents[2]
REPORT = report()


@pytest.mark.parametrize("language", WORDS)
def test_the_page_shows_the_report(language: str) -> None:
    assert table(REPORT, WORDS[language]) in (ROOT / f"docs/tutorial{language}.md").read_text()


@pytest.mark.parametrize("language", WORDS)
def test_the_readme_has_the_accuracies(language: str) -> None:
    page = (ROOT / f"README{language}.md").read_text()
    for rate in RATES:
        found = rows(REPORT, rate)["accuracy"]
        cells = [cell(found[of], "accuracy", of == "gain") for of in ("raw", "average", "gain")]
        assert f"| {' | '.join(cells)} |" in page


def test_what_the_pages_say_of_them_is_so() -> None:
    assert len(REPORT["seeds"]) == 5
    constant, cosine = (rows(REPORT, rate) for rate in RATES)
    accuracy, loss = constant["accuracy"]["gain"], constant["loss"]["gain"]
    assert accuracy["mean"] - accuracy["half"] > 0, "above zero, interval and all"
    assert loss["mean"] + loss["half"] < 0
    assert cosine["accuracy"]["gain"]["mean"] < accuracy["mean"] / 2, "less left to gain"
    assert constant["accuracy"]["average"]["mean"] > cosine["accuracy"]["raw"]["mean"]
    assert abs(constant["wobble"]["gain"]["mean"]) < constant["wobble"]["gain"]["half"]


@pytest.mark.parametrize("rate", RATES)
def test_the_figures_are_those_of_the_curves(rate: str) -> None:
    for run in REPORT["runs"].values():
        for side in ("raw", "average"):
            for number in ("accuracy", "loss"):
                curve = run[f"{rate} {side} {number} curve"]
                assert len(curve) == REPORT["settings"]["epochs"] == 5
                assert run[f"{rate} {side} {number}"] == curve[-1]
