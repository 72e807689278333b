"""The page as a reader sees it, in Chromium: plots, slider, both widths, light and dark, hostile names."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

import polyak
from polyak.report.collect import collect
from polyak.report.page import html
from polyak.report.words import Language, number, percent
from tests.browser import NEEDS_CHROMIUM, chromium, quiet_page
from tests.report.runs import write_checkpoints, write_log, write_run

pytestmark = NEEDS_CHROMIUM

PARTS = ["averages", "curves", "sweep", "profile", "distance", "merged", "cost"]
HOSTILE = "</script><img src=x onerror='window.hacked=1'>"
# Text that cannot be read: beyond the window, unless in a box that scrolls.
CLIPPED = """() => {
  const scrolls = e => e && (e.classList.contains("scroll") || scrolls(e.parentElement))
  const found = []
  for (const e of document.querySelectorAll("body *")) {
    if (scrolls(e) || !e.getClientRects().length) continue
    const box = e.getBoundingClientRect()
    if (box.right > innerWidth + 1 || box.left < -1) found.push(`${e.tagName} ${e.textContent.slice(0, 40)}`)
  }
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways")
  return found
}"""
DRAWN = """() => [...document.querySelectorAll("figure")].map(figure => ({
  svgs: figure.querySelectorAll("svg").length,
  marks: figure.querySelectorAll("svg path[d], svg circle").length,
  role: figure.querySelector("svg")?.getAttribute("role"),
  alt: figure.querySelector("svg")?.getAttribute("aria-label") ?? ""}))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "first", 0), write_run(folder / "second", 1)]


def page_of(paths: list[Path], folder: Path, language: Language = "en") -> Path:
    file = folder / "report.html"
    file.write_text(html(collect(paths), language), encoding="utf-8")
    return file


def facts_in(file: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="facts">(.*?)</script>', file.read_text(), re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg'))")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("count", [1, 2])
def test_every_plot_is_drawn_and_has_words_for_those_who_cannot_see_it(
    browser: Browser, runs: list[Path], tmp_path: Path, language: Language, count: int
) -> None:
    file = page_of(runs[:count], tmp_path, language)
    with quiet_page(browser) as page:
        page.goto(file.as_uri())
        open_all(page)
        assert page.locator("section").evaluate_all("all => all.map(one => one.id)") == PARTS
        drawn = page.evaluate(DRAWN)
        assert len(drawn) == len(facts_in(file)["plots"]) > 6
        for figure in drawn:
            assert figure["svgs"] == 1
            assert figure["marks"] > 0
            assert figure["role"] == "img"
            assert len(figure["alt"]) > 20
    assert file.stat().st_size < 2_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_is_clipped_and_axe_finds_nothing(
    browser: Browser, runs: list[Path], tmp_path: Path, scheme: str, width: int
) -> None:
    file = page_of(runs, tmp_path, "zh" if width == 375 else "en")
    with quiet_page(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.goto(file.as_uri())
        open_all(page)
        assert page.evaluate(CLIPPED) == []
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize(("width", "language"), [(375, "zh"), (1440, "en")])
def test_checkpoints_are_a_plot_a_table_and_what_to_run(
    browser: Browser, tmp_path: Path, width: int, language: Language
) -> None:
    endings = (f"{HOSTILE.replace('/', '∕')}.pt", "a.pt")
    folders = [write_checkpoints(tmp_path / f"run{i}", ending) for i, ending in enumerate(endings)]
    file = page_of(folders, tmp_path, language)
    with quiet_page(browser, viewport={"width": width, "height": 900}) as page:
        page.goto(file.as_uri())
        open_all(page)
        part = page.locator("#merged")
        assert part.locator("figure svg circle").count() == 8
        assert part.locator("tbody tr").count() == 2 * 7
        assert part.locator("pre").all_inner_texts() == [
            f"polyak gate unjudged.safetensors {shlex.quote(f'step-400 {ending}')} "
            '--eval "python eval.py {weights}" --record .'
            for ending in endings
        ]
        assert page.evaluate("window.hacked") is None
        assert page.evaluate(CLIPPED) == []
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("place", [0, 9, 21, 40])
def test_the_slider_says_what_synthesize_says(
    browser: Browser, runs: list[Path], tmp_path: Path, place: int
) -> None:
    file = page_of(runs[:1], tmp_path)
    plot = next(plot for plot in facts_in(file)["plots"] if len(plot.get("frames", [])) > 1)
    frame = plot["frames"][place]
    made = polyak.synthesize(
        runs[0] / "snapshots", polyak.HalfLife(steps=frame["half_life"]), max_error=math.inf
    )
    profile = made.header.profile
    assert profile is not None
    with quiet_page(browser) as page:
        page.goto(file.as_uri())
        figure = page.locator("figure:has(input[type=range])")
        before = figure.locator("svg path").evaluate_all("all => all.map(one => one.getAttribute('d'))")
        slider = figure.locator("input")
        assert slider.get_attribute("max") == str(len(plot["frames"]) - 1)
        page.evaluate(
            "n => { const s = document.querySelector('input[type=range]'); s.value = n;"
            " s.dispatchEvent(new Event('input')) }",
            str(place),
        )
        shown = figure.locator("dd").evaluate_all(
            "all => all.map(one => [one.dataset.key, one.dataset.value])"
        )
        texts = figure.locator("dd").all_inner_texts()
        after = figure.locator("svg path").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    values = {key: float(value) for key, value in shown}
    assert values["error"] == pytest.approx(made.error, rel=1e-12)
    assert values["noise gain"] == pytest.approx(made.noise_gain, rel=1e-12)
    assert values["mean age"] == pytest.approx(profile.mean_age, rel=1e-9)
    assert values["weight on start"] == pytest.approx(profile.weights()[0], abs=1e-12)
    assert texts[:3] == [f"{number(frame['half_life'])} steps", percent(made.error), number(made.noise_gain)]
    weights, edges = profile.weights(), plot["edges"]
    sums = [weights[a + 1 : b + 1].sum() / (b - a) for a, b in pairwise(edges)]
    assert np.allclose(frame["made"], sums, rtol=1e-3, atol=1e-9)
    assert after != before, "the plot follows the slider"


def test_names_from_files_are_text_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "∕")
    folder.mkdir()
    row = {"step": 1, HOSTILE: 0.5, f"ema_{HOSTILE}": 0.6, "acc": 1.0, "ema_acc": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": i}) + "\n" for i in (1, 2, 3)))
    model = torch.nn.Linear(2, 1)
    model.register_parameter(HOSTILE.replace(".", "·"), torch.nn.Parameter(torch.ones(3)))
    ema = polyak.EMA(model, {HOSTILE.replace("/", "∕"): 0.9})
    with polyak.Archive(folder / "snapshots", ema, every=2):
        for _ in range(4):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1
            ema.update()
    ema.save(folder / f"{HOSTILE.replace('/', '∕')}.safetensors")
    decision = {"run": "r", "step": 1, "track": "t", "metric": 1.0, "best": None, "decision": "save"}
    log = folder / "best.safetensors.jsonl"
    log.write_text(json.dumps(decision | {"reason": HOSTILE, "file": "x"}) + "\n")
    (folder / "polyak-run.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    file = page_of([folder], tmp_path)
    with quiet_page(browser) as page:
        page.goto(file.as_uri())
        open_all(page)
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 4
        for part in ("averages", "curves", "distance", "cost"):
            assert "onerror" in page.locator(f"#{part}").text_content(), part  # pyright: ignore


def test_a_script_that_escaping_missed_would_not_run(
    browser: Browser, runs: list[Path], tmp_path: Path
) -> None:
    file = page_of(runs[:1], tmp_path)
    file.write_text(file.read_text().replace("</main>", "<script>window.hacked = 1</script></main>"))
    page = browser.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("window.hacked") is None
    page.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_empty_run_and_one_of_a_single_point(browser: Browser, tmp_path: Path, language: Language) -> None:
    empty, single = tmp_path / "empty", write_log(tmp_path / "single" / "metrics.jsonl", 1).parent
    empty.mkdir()
    (empty / "metrics.jsonl").write_text("")
    ema = polyak.EMA(torch.nn.Linear(1, 1), 0.9)
    with polyak.Archive(single / "snapshots", ema, every=1):
        ema.update()
    for run, plots in ((empty, 0), (single, 3)):
        file = page_of([run], tmp_path, language)
        with quiet_page(browser) as page:
            page.goto(file.as_uri())
            assert page.locator("section").count() == len(PARTS)
            assert page.locator("figure svg").count() == plots
            assert page.evaluate(CLIPPED) == []
            for text in page.locator("dd").all_inner_texts():
                assert "NaN" not in text


def test_a_million_steps_are_a_few_points_and_keep_their_spike(browser: Browser, tmp_path: Path) -> None:
    run = write_log(tmp_path / "long" / "metrics.jsonl", 1_000_000, spike=765_432).parent
    profile = polyak.Profile.from_decay(polyak.Warmup(0.9999), 1_000_000)
    assert profile.steps == 1_000_000
    file = page_of([run], tmp_path)
    [plot] = facts_in(file)["plots"]
    raw, average = plot["lines"]
    assert len(raw["x"]) <= 1200
    assert len(average["x"]) <= 1200
    assert dict(zip(raw["x"], raw["y"], strict=True))[765_432] == 9.0
    assert (raw["x"][0], raw["x"][-1]) == (1, 1_000_000)
    assert file.stat().st_size < 700_000
    with quiet_page(browser) as page:
        page.goto(file.as_uri())
        paths = page.locator("svg path").evaluate_all("all => all.map(one => one.getAttribute('d').length)")
        assert 1_000 < sum(paths) < 150_000


def test_the_page_loads_nothing(runs: list[Path], tmp_path: Path) -> None:
    text = page_of(runs, tmp_path).read_text()
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["']?(?!#)[^"' >]+|url\(|@import""", body)
    assert "default-src 'none'" in text
