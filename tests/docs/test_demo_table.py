"""The demo's table: computed from committed results, the same in every place that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.demo.run import WORDS, newest, rows, table

ROOT = Path(__file__).parents[2]
SIGNS = {"raw": "", "average": "", "gain": "+"}
REPORT = json.loads(newest().read_text())


@pytest.mark.parametrize("language", WORDS)
def test_pages_show_the_newest_results(language: str) -> None:
    found = table(REPORT, WORDS[language])
    assert newest().with_suffix(f"{language}.md").read_text() == found
    assert found in (ROOT / f"docs/tutorial{language}.md").read_text()


@pytest.mark.parametrize("language", WORDS)
def test_the_readme_has_the_accuracies(language: str) -> None:
    page = (ROOT / f"README{language}.md").read_text()
    for rate in ("constant", "cosine"):
        found = rows(REPORT["runs"][rate])["last"]
        cells = [
            f"{100 * found[of]['mean']:{sign}.2f} ± {100 * found[of]['half']:.2f}"
            for of, sign in SIGNS.items()
        ]
        assert f"| {' | '.join(cells)} |" in page


def test_what_the_pages_say_of_them_is_so() -> None:
    assert {len(runs) for runs in REPORT["runs"].values()} == {5}
    constant, cosine = (rows(REPORT["runs"][rate]) for rate in ("constant", "cosine"))
    accuracy, loss = constant["last"]["gain"], constant["test_loss"]["gain"]
    assert accuracy["mean"] - accuracy["half"] > 0, "above zero, interval and all"
    assert loss["mean"] + loss["half"] < 0
    assert cosine["last"]["gain"]["mean"] < accuracy["mean"] / 2, "less left to gain"
    assert constant["last"]["average"]["mean"] > cosine["last"]["raw"]["mean"]
    assert abs(constant["wobble"]["gain"]["mean"]) < constant["wobble"]["gain"]["half"]


@pytest.mark.parametrize("rate", ["constant", "cosine"])
def test_the_figures_are_those_of_the_curves(rate: str) -> None:
    for run in REPORT["runs"][rate].values():
        assert len(run["curves"]["accuracy"]) == REPORT["epochs"] == 5
        assert run["raw"]["last"] == run["curves"]["accuracy"][-1]
        assert run["ema"]["test_loss"] == run["curves"]["ema_test_loss"][-1]
