"""The page: records of runs in, one HTML file out, which fetches nothing.

Why Observable Plot (0.6.17, with D3 7.9): it draws SVG, so text stays text, colours follow light, dark and
print, and a test can read every mark; and it fits. Minified, in kB, measured 2026-11-29: uPlot 51 (a canvas,
in which tests and screen readers find nothing), Observable Plot and D3 490, ECharts' smallest bundle 500 and
its whole 1,122 (the small one has no error bars), Vega, Vega-Lite and Embed 832 (they compile code, which the
page's policy forbids), plotly-basic 1,192.

Text from files is escaped here once for HTML, or is JSON in an inert ``<script>``; the page's policy lets the
browser run the page's own scripts only, known by their hash, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date
from functools import cache
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from polyak.report.facts import Run
from polyak.report.markup import Section
from polyak.report.plot import Plot
from polyak.report.sections import sections
from polyak.report.words import Language, Words

_SCRIPTS = ("d3.min.js", "plot.min.js", "page.js")
_LIVE_SCRIPTS = ("live.js", *_SCRIPTS)  # first: it keeps the sections as they were sent
_SPOKEN = (
    *("half-life", "error", "noise gain", "mean age", "weight on start", "half of it", "most of it"),
    *("made", "target", "steps", "copied", "slider"),
)
_LIVE_SPOKEN = ("live", "changed at", "lost")


def html(runs: Sequence[Run], language: Language = "en", today: date | None = None) -> str:
    """The page of some runs.

    Args:
        runs: from ``collect``.
        language: "en" or "zh".
        today: shown at the foot.
    """
    return _page(runs, language, body(runs, language, today), _SCRIPTS)


def live_html(runs: Sequence[Run], language: Language, tag: str, every: float) -> str:
    """The page with a script that asks for ``parts`` beside it, and puts in what has changed.

    Args:
        runs: from ``collect``.
        language: "en" or "zh".
        tag: that of ``body`` as it is now.
        every: seconds between two questions.
    """
    words = Words(language)
    spoken = {key: words(key) for key in _LIVE_SPOKEN}
    live = {"tag": tag, "every": every, "words": spoken}
    start = f'<script type="application/json" id="live">{_inert(live)}</script>'
    return _page(runs, language, f"{body(runs, language)}\n{start}", _LIVE_SCRIPTS)


def _page(runs: Sequence[Run], language: Language, inner: str, names: Sequence[str]) -> str:
    live = names is _LIVE_SCRIPTS
    icon = ['<link rel="icon" href="data:,">'] if live else []  # else a browser would ask the server for one
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="{"zh-CN" if language == "zh" else "en"}">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(live)}">',
            *icon,
            f"<title>{escape(_names(runs))} – {escape(Words(language)('title'))}</title>",
            f"<style>{_asset('page.css')}</style></head><body>",
            inner,
            *(f"<script>{_asset(name)}</script>" for name in names),
            "</body></html>",
            "",
        ]
    )


def body(runs: Sequence[Run], language: Language = "en", today: date | None = None) -> str:
    """What of the page the runs decide: its text, and what its scripts draw."""
    words = Words(language)
    parts = sections(runs, words)
    spoken = {key: words(key) for key in _SPOKEN}
    facts = {"plots": [_compact(asdict(plot)) for part in parts for plot in part.plots], "words": spoken}
    title, names, day = words("title"), _names(runs), today or date.today()
    return "\n".join(
        [
            f"<header><p class=kicker>{escape(title)}</p><h1>{escape(names)}</h1>",
            _contents(parts),
            "</header><main>",
            *_numbered(parts),
            "</main>",
            f"<footer>{escape(words('made by', version=version('polyak'), day=day))}</footer>",
            f"<!--\n{_asset('plot.LICENSE.txt')}\n{_asset('d3.LICENSE.txt')}-->",
            f'<script type="application/json" id="facts">{_inert(facts)}</script>',
        ]
    )


def _names(runs: Sequence[Run]) -> str:
    return " · ".join(run.name for run in runs)


def _contents(parts: Sequence[Section]) -> str:
    links = (f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in parts)
    return f"<nav><ol>{''.join(links)}</ol></nav>"


def _numbered(parts: Sequence[Section]) -> Iterable[str]:
    """The sections, each plot in the place that says its number."""
    place = 0
    for part in parts:
        figures: list[str] = []
        for plot in part.plots:
            figures.append(_figure(plot, place))
            place += 1
        shown = len(figures) if part.folded is None else part.folded
        grid = f"<div class=grid>{''.join(figures[:shown])}</div>" if figures[:shown] else ""
        rest = ""
        if figures[shown:]:
            summary = f"<summary>{escape(part.folded_title)}</summary>"
            rest = f"<details>{summary}<div class=grid>{''.join(figures[shown:])}</div></details>"
        body = f"{part.before}{grid}{rest}{part.after}"
        yield f'<section id="{part.name}"><h2>{escape(part.title)}</h2>{body}</section>'


def _figure(plot: Plot, place: int) -> str:
    slider = ""
    if len(plot.frames) > 1:
        last = len(plot.frames) - 1
        slider = (
            f'<div class=slider><label for="slider{place}"></label>'
            f'<input type=range id="slider{place}" min=0 max="{last}" value="{plot.start}" step=1></div>'
        )
    numbers = "<dl class=numbers></dl>" if plot.frames else ""
    title = f"<h3>{escape(plot.title)}</h3>" if plot.title else ""
    note = f"<figcaption>{escape(plot.note)}</figcaption>" if plot.note else ""
    return f'<figure data-plot="{place}">{title}{slider}{numbers}<div class=plot></div>{note}</figure>'


@cache
def policy(live: bool) -> str:
    """What the page may do: run its own scripts, and if it is live ask its own server."""
    scripts = map(_asset, _LIVE_SCRIPTS if live else _SCRIPTS)
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
    return f"{rules}; connect-src 'self'" if live else rules


def _inert(facts: Any) -> str:
    """JSON that ends no script element and starts no comment, whatever is in it."""
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _compact(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty."""
    return {key: value for key, value in fields.items() if value not in ((), None, "")}


def _asset(name: str) -> str:
    return (files("polyak.report") / "assets" / name).read_text(encoding="utf-8")
