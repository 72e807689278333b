"""The committed reports and the page of results that is written from them."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from experiments import harness, results
from experiments.harness import Experiment, difference, verdict

ROOT = Path(__file__).parents[2]
REPORTS = {found["experiment"]: found for found in results.reports()}
KEYS = {
    "experiment": str,
    "claim": str,
    "published": str,
    "gain": float | int | None,
    "data": dict,
    "machine": str,
    "date": str,
    "quick": bool,
    "settings": dict,
    "seeds": list,
    "rows": list,
    "verdict": str,
    "seconds": float,
    "curves": dict,
    "runs": dict,
}
OWNER = "Owner: polyak's maintainers"


def experiments(name: str) -> tuple[Experiment, ...]:
    return importlib.import_module(f"experiments.{name}.run").EXPERIMENTS


def test_the_pages_are_what_the_reports_say() -> None:
    assert not results.stale(), "run python -m experiments.results"


def test_a_stale_page_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, text in results.pages().items():
        (tmp_path / path.name).write_text(text.replace("±", "+-") + "?" * (path.name == "results.md"))
    monkeypatch.setattr(results, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["results", "--check"])
    with pytest.raises(SystemExit, match=r"^results\.md: run"):
        results.main()
    (tmp_path / "results.zh.md").unlink()
    with pytest.raises(SystemExit, match=r"results\.zh\.md"):
        results.main()
    monkeypatch.setattr(sys, "argv", ["results"])
    results.main()
    monkeypatch.setattr(sys, "argv", ["results", "--check"])
    with pytest.raises(SystemExit) as left:
        results.main()
    assert not left.value.code


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_has_its_schema(name: str) -> None:
    found = REPORTS[name]
    assert {key for key, kind in KEYS.items() if not isinstance(found[key], kind)} == set()
    assert set(found) == {*KEYS, "folder"}
    assert set(found["data"]) == {"name", "licence"}
    assert [str(seed) for seed in found["seeds"]] == list(found["runs"])
    for row in found["rows"]:
        assert set(row) == {"metric", "unit", "better", "headline", "without", "with", "difference"}
        assert row["better"] in results.ARROWS
        assert all(set(row[side]) == {"what", "values"} for side in ("without", "with"))
        assert all(len(row[side]["values"]) == len(found["seeds"]) for side in ("without", "with"))
    for curve in found["curves"]:
        assert len({len(run[curve]) for run in found["runs"].values()}) == 1, curve


@pytest.mark.parametrize("name", REPORTS)
def test_intervals_and_verdict_follow_from_the_values_alone(name: str) -> None:
    found = REPORTS[name]
    for row in found["rows"]:
        expected = difference(row["without"]["values"], row["with"]["values"])
        assert row["difference"] == pytest.approx(expected), row["metric"]
    row = results.headline(found)
    assert found["verdict"] == verdict(row["difference"], row["better"], found["gain"])


@pytest.mark.parametrize("name", results.NAMES)
def test_a_name_has_a_full_report_of_its_present_claim_and_settings(name: str) -> None:
    folder = ROOT / "experiments" / name / "results"
    for one in experiments(name):
        found: dict[str, Any] = json.loads((folder / f"{one.name}.json").read_text())
        assert len(found["seeds"]) >= 5
        again = harness.report(one, "full", one.full, found["runs"])
        again |= {key: found[key] for key in ("machine", "date")}
        assert found == json.loads(json.dumps(again)), "not what run.py makes of the seeds' numbers"
    assert {path.stem for path in folder.glob("*.json")} == {one.name for one in experiments(name)}


@pytest.mark.parametrize("name", results.NAMES)
def test_a_name_has_a_readme(name: str) -> None:
    page = (ROOT / "experiments" / name / "README.md").read_text()
    assert f"python -m experiments.{name}.run" in page
    assert "**What it does not show.**" in page
    assert re.search(r"\*\*Claims?\.\*\*", page)
    assert "**How.**" in page
    assert OWNER in page


def test_the_count_at_the_top_is_that_of_the_table() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    table = page.split("## The articles' figures")[1].split("## ")[0]
    said = dict(
        re.findall(r"\*([a-z, ]+)\* (\d+)", re.split(r"tried in \d+ ways:\*\*", page)[1].split("\n")[0])
    )
    shown = [line.split("|")[-2].strip() for line in table.strip().splitlines()[2:]]
    assert len(results.ARTICLES) == 7
    assert all(article in table for article in results.ARTICLES)
    assert {verdict: int(number) for verdict, number in said.items() if int(number)} == {
        verdict: shown.count(verdict) for verdict in shown
    }


def test_every_folder_with_a_harness_is_on_the_page() -> None:
    using = {
        path.parent.name
        for path in (ROOT / "experiments").glob("*/run.py")
        if "harness.main(" in path.read_text()
    }
    assert using == set(results.NAMES)


def test_every_experiment_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import quick

    ran: list[str] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command[-2]))
    monkeypatch.setattr(quick, "torchvision_loads", lambda: True)
    every = ["ocr", *(f"experiments.{name}.run" for name in results.NAMES)]
    for day in range(len(every)):
        monkeypatch.setattr(sys, "argv", ["quick", "--today"])
        quick.main(day)
    assert sorted(ran) == sorted(every)
    ran.clear()
    monkeypatch.setattr(sys, "argv", ["quick"])
    quick.main(0)
    assert ran == every


def test_a_detector_is_started_with_a_stand_in_only_where_torchvision_does_not_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from experiments import quick

    monkeypatch.setattr(quick, "torchvision_loads", lambda: False)
    started = [sys.executable, "-m"]
    with_it = [*started, "tests.with_torchvision", "experiments.detection.run", "--quick"]
    assert quick.command("detection") == with_it
    assert quick.command("tutorial") == [*started, "experiments.tutorial.run", "--quick"]
    monkeypatch.setattr(quick, "torchvision_loads", lambda: True)
    assert quick.command("detection") == [*started, "experiments.detection.run", "--quick"]


def test_what_the_pages_say_of_half_lives_is_so() -> None:
    found = REPORTS["halflife"]
    runs, half_lives = list(found["runs"].values()), found["settings"]["half_lives"]
    best = {epochs: fmean(run[f"constant {epochs} best"] for run in runs) for epochs in (1, 5)}
    by_heart, raw = (fmean(run[f"constant 10 {name}"] for run in runs) for name in ("train", "raw"))
    for language, steps in (("", "steps"), (".zh", "步")):
        page = (ROOT / "docs" / f"theory{language}.md").read_text()
        for epochs, h in best.items():
            assert f"{h:.0f} {steps}" in page
            assert f"1/{938 * epochs / h:.0f}" in page
        assert f"{by_heart:.2f}" in page
        assert f"{raw:.2f}" in page
    lowest: list[int] = []
    for epochs in (1, 5, 10):
        losses = [
            fmean(each) for each in zip(*(run[f"constant {epochs} curve"] for run in runs), strict=True)
        ]
        lowest.append(half_lives[losses.index(min(losses))])
    for language in ("", ".zh"):
        (picture,) = re.findall(
            r"!\[(.*)\]\(../pictures/sweep\.svg",
            (ROOT / "docs/how-to" / f"another-decay{language}.md").read_text(),
        )
        assert [int(h.replace(",", "")) for h in re.findall(r"(\d[\d,]*) (?:steps|步)", picture)] == lowest


def test_the_table_of_half_lives_is_that_of_the_report() -> None:
    from experiments.halflife.table import tables

    for path, text in tables().items():
        assert path.read_text() == text, "run python -m experiments.halflife.table"
        assert text.count("\n| ") == (2 + 9) + (1 + 5)
