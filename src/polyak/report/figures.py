"""The plots of the page as SVG and PNG for papers; needs the ``plot`` extra.

The same ``Plot`` records as on the page, drawn by matplotlib, which needs no browser. Text stays text in SVG.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager

# Not pyplot, which keeps its figures and needs a display.
from matplotlib.figure import Figure

from polyak._files.write import atomic
from polyak.errors import CheckpointError
from polyak.report.facts import Run
from polyak.report.plot import Plot
from polyak.report.sections import sections
from polyak.report.words import Language, Words

_INKS = {
    "raw": "#8a6d3b",
    "average": "#3949ab",
    "best": "#b3261e",
    "faint": "#d5d9e2",
    "run0": "#3949ab",
    "run1": "#00796b",
    "run2": "#b0186a",
    "run3": "#8f5a00",
    "run4": "#5d4a9c",
    "run5": "#40657a",
}
_STYLES = {"solid": "-", "dashed": "--", "dotted": ":"}
_CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei"),
    *("Noto Sans CJK JP", "Noto Serif CJK SC", "Noto Serif CJK JP"),
)


def write_figures(runs: Sequence[Run], folder: Path, language: Language = "en") -> list[Path]:
    """Write each plot of the page as ``NAME.svg`` and ``NAME.png``.

    Returns:
        The files.

    Raises:
        CheckpointError: a file cannot be written.
    """
    chinese = _chinese_fonts() if language == "zh" else []
    # Text in SVG is set in the reader's fonts; that of a PNG in English if there is no font for Chinese here.
    of_png: Language = language if language == "en" or chinese else "en"
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error}") from error
    endings: dict[str, Language] = {"svg": language, "png": of_png}
    for ending, chosen in endings.items():
        plots = [plot for part in sections(runs, Words(chosen)) for plot in part.plots]
        for plot, name in zip(plots, _file_names(plots), strict=True):
            written.append(folder / f"{name}.{ending}")
            _write(plot, written[-1], [*chinese, "DejaVu Sans"])
    return written


def _file_names(plots: Sequence[Plot]) -> list[str]:
    """Names of the plots as names of files, each once."""
    found: list[str] = []
    for plot in plots:
        name = re.sub(r"[^\w.-]+", "-", plot.name).strip("-.")[:80] or "plot"
        same = sum(one == name or re.fullmatch(re.escape(name) + r"-\d+", one) is not None for one in found)
        found.append(f"{name}-{same + 1}" if same else name)
    return found


def _write(plot: Plot, path: Path, fonts: list[str]) -> None:
    with mpl.rc_context({"svg.fonttype": "none", "font.family": fonts, "svg.hashsalt": "polyak"}):
        figure: Any = Figure(figsize=(6, 3.6), layout="constrained")
        axes: Any = figure.add_subplot()
        _draw(plot, axes)
        options: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 200}
        with atomic(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # in names from files
            figure.savefig(temporary, format=path.suffix[1:], **options)


def _draw(plot: Plot, axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3c8d0")
    axes.grid(visible=True, axis="y", alpha=0.25)
    axes.set(title=_plain(plot.title), xlabel=_plain(plot.x), ylabel=_plain(plot.y))
    for band in plot.bands:
        x, low, high = (_floats(values) for values in (band.x, band.low, band.high))
        axes.fill_between(
            x, low, high, color=_INKS[band.ink], alpha=0.5 if band.ink == "faint" else 0.12, linewidth=0
        )
    for line in plot.lines:
        style = {"color": _INKS[line.ink], "linestyle": _STYLES[line.style], "linewidth": line.width * 0.8}
        marker = "o" if len(line.x) == 1 else None
        label = _plain(line.label) or "_nolegend_"
        axes.plot(_floats(line.x), _floats(line.y), label=label, marker=marker, markersize=4, **style)
    for rule in plot.rules:
        axes.axhline(rule.y, color=_INKS[rule.ink], linestyle="--", linewidth=1, label=_plain(rule.label))
    for dot in plot.dots:
        ink = _INKS[dot.ink]
        axes.plot(dot.x, dot.y, "o", color=ink, markerfacecolor="white" if dot.hollow else ink, markersize=5)
        if dot.low is not None and dot.high is not None:
            axes.vlines(dot.x, dot.low, dot.high, color=ink, linewidth=1.2)
        if dot.label:
            axes.annotate(
                _plain(dot.label), (dot.x, dot.y), xytext=(0, 9), textcoords="offset points", ha="center"
            )
    if plot.frames:
        _draw_profile(plot, axes)
    if plot.log_x:
        axes.set_xscale("log")
    if plot.domain is not None:
        axes.set_ylim(*plot.domain)
    if len(axes.get_legend_handles_labels()[1]) > 0:
        axes.legend(frameon=False, fontsize="small")


def _draw_profile(plot: Plot, axes: Any) -> None:
    """The frame at which the slider starts."""
    frame = plot.frames[plot.start]
    edges = np.array(plot.edges, np.float64)
    axes.stairs(100 * np.array(frame.made), edges, color=_INKS["average"], fill=True, alpha=0.3)
    axes.stairs(100 * np.array(frame.made), edges, color=_INKS["average"], linewidth=1.2)
    axes.set_ylabel(f"{_plain(plot.y)}, %")


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _plain(text: str) -> str:
    """Without what matplotlib would take for mathematics, or hide from its legend."""
    text = "".join(one if one.isprintable() else " " for one in text).replace("$", r"\$")
    return text.lstrip("_") if text.startswith("_") else text


def _chinese_fonts() -> list[str]:
    """Fonts with Chinese characters on this machine; matplotlib's own list may be older than they are."""
    manager = font_manager.fontManager
    if not any(font.name in _CHINESE for font in manager.ttflist):
        wanted = {name.replace(" ", "").removesuffix("SC").removesuffix("JP") for name in _CHINESE}
        for path in font_manager.findSystemFonts():
            if Path(path).stem.partition("-")[0] in wanted:
                manager.addfont(path)
    known = {font.name for font in manager.ttflist}
    return [name for name in _CHINESE if name in known]
