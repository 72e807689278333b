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
from html import escape
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from polyak.report.facts import Run
from polyak.report.plot import Plot
from polyak.report.sections import Section, sections
from polyak.report.words import Language, Words

_SCRIPTS = ("d3.min.js", "plot.min.js", "page.js")
_SPOKEN = (
    *("half-life", "error", "noise gain", "mean age", "weight on start", "half of it", "most of it"),
    *("made", "target", "steps", "copied", "slider"),
)


def html(runs: Sequence[Run], language: Language = "en", today: date | None = None) -> str:
    """The page of some runs.

    Args:
        runs: from ``collect``.
        language: "en" or "zh".
        today: shown at the foot.
    """
    words = Words(language)
    parts = sections(runs, words)
    plots = [plot for part in parts for plot in part.plots]
    scripts = [_asset(name) for name in _SCRIPTS]
    spoken = {key: words(key) for key in _SPOKEN}
    facts = {"plots": [_compact(asdict(plot)) for plot in plots], "words": spoken}
    title, day = words("title"), today or date.today()
    names = " · ".join(run.name for run in runs)
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="{"zh-CN" if language == "zh" else "en"}">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">',
            f"<title>{escape(names)} – {escape(title)}</title>",
            f"<style>{_asset('page.css')}</style></head>",
            f"<body><header><p class=kicker>{escape(title)}</p><h1>{escape(names)}</h1>",
            _contents(parts),
            "</header><main>",
            *_numbered(parts),
            "</main>",
            f"<footer>{escape(words('made by', version=version('polyak'), day=day))}</footer>",
            f"<!--\n{_asset('plot.LICENSE.txt')}\n{_asset('d3.LICENSE.txt')}-->",
            f'<script type="application/json" id="facts">{_inert(facts)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>",
            "",
        ]
    )


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


def _policy(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _inert(facts: Any) -> str:
    """JSON that ends no script element and starts no comment, whatever is in it."""
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _compact(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty."""
    return {key: value for key, value in fields.items() if value not in ((), None, "")}


def _asset(name: str) -> str:
    return (files("polyak.report") / "assets" / name).read_text(encoding="utf-8")
