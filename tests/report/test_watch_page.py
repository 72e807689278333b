"""The live page as a reader sees it: Chromium, `polyak watch` and a training, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.browser import NEEDS_CHROMIUM, chromium
from tests.cli.test_watch import watching
from tests.report.test_page import CLIPPED

pytestmark = [NEEDS_CHROMIUM, pytest.mark.slow]

SLIDER = "#profile input[type=range]"
HALF_LIFE = "#profile dd[data-key=half-life]"
TOP = f"document.querySelector('{SLIDER}').getBoundingClientRect().top"
PIPE = subprocess.PIPE


class Training:
    """The writer, and orders to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, order: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip().isdigit()


@contextmanager
def training(folder: Path) -> Generator[Training]:
    command = [sys.executable, "-m", "tests.report.writer", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environment) as process:
        try:
            yield Training(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def patient(browser: Browser, **options: Any) -> Page:
    """A page that may take as long as a machine that trains on all its cores."""
    page = browser.new_page(**options)
    page.set_default_timeout(120_000)
    return page


def facts(page: Page) -> list[dict[str, Any]]:
    return page.evaluate("JSON.parse(document.getElementById('facts').textContent).plots")


def wait_for_step(page: Page, step: int) -> None:
    page.wait_for_function(
        """step => JSON.parse(document.getElementById("facts").textContent).plots
            .some(plot => (plot.lines || []).some(line => line.x.at(-1) === step))""",
        arg=step,
    )


def test_the_page_follows_a_training_and_keeps_what_its_reader_did(browser: Browser, tmp_path: Path) -> None:
    with training(tmp_path) as train, watching(tmp_path, "--every", "0.3") as watch:
        train("steps 200")
        assert watch.stdout is not None
        address = watch.stdout.readline().strip()
        size = {"width": 1000, "height": 500}
        page = patient(browser, color_scheme="dark", viewport=size, reduced_motion="reduce")
        complaints: list[str] = []
        elsewhere: list[str] = []
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith(address) else elsewhere.append(one.url))
        page.goto(address)
        assert page.locator(".live").inner_text().strip() == "live"
        wait_for_step(page, 200)

        # What a reader does: a half-life, a place on the page, something opened.
        page.evaluate("window.mine = document.querySelector('#merged')")
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        opened = page.locator("details[open]").count()
        assert opened > 0
        page.locator(SLIDER).focus()
        for _ in range(9):
            page.keyboard.press("ArrowLeft")
        half_life = float(page.locator(HALF_LIFE).get_attribute("data-value") or 0)
        before = facts(page)
        assert page.evaluate("scrollY") > 300
        top = page.evaluate(TOP)

        train("steps 400")
        wait_for_step(page, 600)
        now = float(page.locator(HALF_LIFE).get_attribute("data-value") or 0)
        choices = [f["half_life"] for plot in facts(page) for f in plot.get("frames", [])]
        assert choices != [f["half_life"] for plot in before for f in plot.get("frames", [])]
        assert now == min(
            choices,
            key=lambda one: abs(one / half_life - 1) if one >= half_life else abs(half_life / one - 1),
        )
        assert int(page.locator(SLIDER).input_value()) == choices.index(now)
        assert page.evaluate(f"document.activeElement === document.querySelector('{SLIDER}')")
        assert page.locator("details[open]").count() >= opened
        # Less than two lines: a line above may wrap, and then the browser scrolls on by itself.
        assert abs(page.evaluate(TOP) - top) < 40
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 28)"
        assert page.evaluate("window.mine === document.querySelector('#merged')"), "unchanged: left alone"
        assert "last change" in page.locator(".live").inner_text()
        assert page.evaluate(CLIPPED) == []
        drawn = page.locator("figure").evaluate_all(
            "all => all.map(one => one.querySelectorAll('svg').length)"
        )
        assert set(drawn) == {1}
        page.keyboard.press("ArrowLeft")
        moved = float(page.locator(HALF_LIFE).get_attribute("data-value") or 0)
        assert moved == choices[choices.index(now) - 1], "the new slider works"

        # A line torn by a kill; a run that is begun anew.
        train("half")
        train("steps 20")
        page.wait_for_selector(".problems")  # names the torn line
        assert "metrics.jsonl" in page.locator(".problems").inner_text()
        train("again")
        wait_for_step(page, 20)
        page.wait_for_selector(".problems", state="detached")
        assert complaints == []
        assert elsewhere == []

        watch.send_signal(signal.SIGINT)
        page.wait_for_selector(".live.lost")
        assert "connection lost" in page.locator(".live").inner_text()
        assert page.locator("figure svg").count() == len(facts(page)), "the page stays as it was"
        assert watch.wait(60) == 0
        page.close()


def test_a_slider_that_is_held_is_not_taken_away(browser: Browser, tmp_path: Path) -> None:
    with training(tmp_path) as train, watching(tmp_path, "--every", "0.3") as watch:
        train("steps 200")
        assert watch.stdout is not None
        page = patient(browser)
        page.goto(watch.stdout.readline().strip())
        page.locator(SLIDER).scroll_into_view_if_needed()
        box = page.locator(SLIDER).bounding_box()
        assert box is not None
        page.evaluate(f"window.mine = document.querySelector('{SLIDER}')")
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        with page.expect_response(lambda one: one.url.endswith("parts") and one.status == 200):
            train("steps 200")
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        assert page.evaluate(f"window.mine === document.querySelector('{SLIDER}')")
        half_life = float(page.locator(HALF_LIFE).get_attribute("data-value") or 0)
        page.mouse.up()
        wait_for_step(page, 400)
        assert page.evaluate(f"window.mine !== document.querySelector('{SLIDER}')")
        now = float(page.locator(HALF_LIFE).get_attribute("data-value") or 0)
        assert abs(now / half_life - 1) < 0.2
        page.close()


def test_a_page_that_nobody_looks_at_asks_nothing(browser: Browser, tmp_path: Path) -> None:
    with watching(tmp_path, "--every", "0.2", "--lang", "zh") as watch:
        assert watch.stdout is not None
        page = patient(browser)
        page.goto(watch.stdout.readline().strip())
        assert page.locator(".live").inner_text().strip() == "实时"
        asked: list[str] = []
        page.on("request", lambda one: asked.append(one.url))
        with page.expect_response(lambda one: one.url.endswith("parts")):
            pass
        page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        asked.clear()
        page.wait_for_timeout(2_000)
        assert asked == []
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        with page.expect_response(lambda one: one.url.endswith("parts")):
            pass
        page.close()


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1440, "light")])
def test_the_live_page_fits_and_axe_finds_nothing(
    browser: Browser, tmp_path: Path, width: int, scheme: Any
) -> None:
    with training(tmp_path) as train, watching(tmp_path, "--every", "0.3") as watch:
        train("steps 200")
        assert watch.stdout is not None
        page = patient(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(watch.stdout.readline().strip())
        train("steps 200")
        wait_for_step(page, 400)
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        assert page.evaluate(CLIPPED) == []
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.close()
