"""The documentation as a reader sees it: opened from its files, in Chromium, at three widths."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import NEEDS_CHROMIUM, chromium, quiet_page
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(
    ("zh/" * path.stem.endswith(".zh") + str(path.relative_to(DOCS)).replace(".zh", "")).replace(
        ".md", ".html"
    )
    for path in DOCS.rglob("*.md")
)
WIDTHS = (1440, 768, 375)  # a laptop, a tablet, a telephone

pytestmark = NEEDS_CHROMIUM

# What is cut off: code or a table that does not fit, at 1440 pixels. On smaller screens these may scroll, but
# nothing else, and no cell is so narrow that its words are broken.
CUT_OFF = """(wide) => {
  const found = []
  const text = element => element.textContent.trim().slice(0, 80)
  const seen = element => element.offsetParent !== null && element.clientWidth > 0
  const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
  const inside = element => element !== null && (scrolls(element) || inside(element.parentElement))
  for (const box of document.querySelectorAll(".md-content pre > code, .md-typeset__scrollwrap")) {
    const over = box.scrollWidth - box.clientWidth
    if (seen(box) && over > 1 && (wide || !scrolls(box))) found.push(`${over} px of: ${text(box)}`)
  }
  for (const element of document.querySelectorAll(".md-content *")) {
    const edge = element.getBoundingClientRect().right - document.documentElement.clientWidth
    if (seen(element) && edge > 1 && !inside(element)) found.push(`beyond the edge: ${text(element)}`)
  }
  for (const cell of document.querySelectorAll(".md-content td, .md-content th"))
    if (seen(cell) && text(cell).length > 12 && cell.clientWidth < 60) found.push(`narrow: ${text(cell)}`)
  if (document.documentElement.scrollWidth > innerWidth + 1) found.push("the page scrolls sideways")
  return found
}"""
# The n-th tab of each set is opened; whether there was one.
OPEN_TABS = """(n) => {
  const all = [...document.querySelectorAll(".tabbed-set")]
  const sets = all.map(set => set.querySelectorAll(":scope > input"))
  for (const tabs of sets) tabs[Math.min(n, tabs.length - 1)].click()
  return sets.some(tabs => n < tabs.length)
}"""
IMAGES = """() => {
  const lacks = image => !image.alt.trim() || (image.offsetParent !== null && !image.naturalWidth)
  return [...document.querySelectorAll(".md-content img")].filter(lacks).map(image => image.src)
}"""
SHOWN = "all => all.filter(image => image.offsetParent).map(image => image.src)"
LINKS = "() => [...document.querySelectorAll('a[href]')].map(link => link.href)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose test fails on anything that the browser complains about."""
    with quiet_page(browser) as opened:
        yield opened


@cache
def anchors(file: Path) -> set[str]:
    return set(re.findall(r'\s(?:id|name)="?([^"\s>]+)', file.read_text()))


def broken(links: list[str]) -> list[str]:
    """Those that lead to no file, or to no place in one."""
    local = [(link, urlsplit(link)) for link in links if link.startswith("file:")]
    return [
        link
        for link, parts in local
        if not (file := Path(unquote(parts.path))).is_file()
        or (parts.fragment and file.suffix == ".html" and unquote(parts.fragment) not in anchors(file))
    ]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_at_every_width(name: str, site: Path, page: Page) -> None:
    page.goto((site / name).as_uri())
    assert not broken(page.evaluate(LINKS))
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        tab = 0
        while page.evaluate(OPEN_TABS, tab) or tab == 0:
            assert not page.evaluate(CUT_OFF, width == WIDTHS[0]), f"{width} px, tab {tab}"
            tab += 1
        assert not page.evaluate(IMAGES)


@pytest.mark.parametrize(("language", "words"), [("", "half-life"), ("zh/", "半衰期")])
def test_the_search_works_from_files(language: str, words: str, site: Path, page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto((site / language / "index.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type(words)
    page.keyboard.press("End")  # the search looks when a key goes up, and none does when Chinese is inserted
    found = page.locator(".md-search-result__item a").first
    found.wait_for()
    assert "/zh/" * bool(language) in (found.get_attribute("href") or "")


def test_a_reader_can_copy_code_and_turn_the_page(site: Path, page: Page) -> None:
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto((site / "how-to" / "plain.html").as_uri())
    page.locator(".md-content .md-clipboard, .md-code__button").first.wait_for(state="attached")
    assert page.locator(".tabbed-labels label").first.inner_text() == "After"
    page.locator("a.md-footer__link--next").click()
    assert page.url.endswith("how-to/lightning.html")


def test_a_reader_can_turn_off_the_light_and_the_pictures_follow(site: Path, page: Page) -> None:
    page.goto((site / "index.html").as_uri())
    for scheme in ("default", "slate"):  # from the system's choice to light, to dark
        page.locator("form[data-md-component=palette] label:not([hidden])").click()
        assert page.locator("body").get_attribute("data-md-color-scheme") == scheme
        shown = page.locator(".md-content img").evaluate_all(SHOWN)
        assert ["-dark" in source for source in shown] == [scheme == "slate"]
