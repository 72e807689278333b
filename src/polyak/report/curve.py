"""A metric over the half-life, in the terminal and as a PNG with the ``plot`` extra; curves over steps.

Drawn by our own code: tests hold every character, which plotext and uniplot do not promise between releases.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from polyak._files.write import atomic
from polyak.errors import MissingExtraError
from polyak.report.facts import Series
from polyak.select.evaluate import SweepRecord, Trial


class _Symbols(NamedTuple):
    best: str
    point: str
    raw: str
    between: str
    tick: str
    side: str
    corner: str
    floor: str


_GUTTER = 4  # columns left of the shortest half-life for the raw weights
_UNICODE = _Symbols("●", "○", "×", "·", "┤", "│", "└", "─")
_ASCII = _Symbols("@", "o", "x", ".", "+", "|", "+", "-")


def drawing(record: SweepRecord, width: int = 80, height: int = 12, ascii_only: bool = False) -> str:
    """The metrics over a logarithmic half-life as text, the best one marked; left of them the raw weights.

    Args:
        record: with at least one metric.
        width: columns of the terminal, at least 40.
        height: lines of the plot, at least 3.
        ascii_only: for a terminal without Unicode.

    Returns:
        Lines of text, none wider than ``width``.
    """
    symbols = _ASCII if ascii_only else _UNICODE
    half_lives, metrics = zip(*_measured(record), strict=True)
    raw = _raw(record)
    values = [*metrics, *raw]
    high, low = f"{max(values):.6g} ", f"{min(values):.6g} "
    room, gutter = width - max(len(high), len(low)) - 1, _GUTTER * len(raw)
    columns = _spread([math.log(h) for h in half_lives], room - gutter)
    rows = _spread([-value for value in values], height)  # downwards, as lines are printed
    cells = [(gutter + x, y) for x, y in zip(columns, rows, strict=False)]
    canvas = _canvas(cells, room, height, symbols)
    if raw:
        canvas[rows[-1]][1] = symbols.raw
    x, y = cells[half_lives.index(record.best.half_life) if record.best is not None else 0]
    canvas[y][x] = symbols.best
    axis = _axis(half_lives[0], half_lives[-1], room - gutter)
    return _framed(canvas, {max(rows): low, min(rows): high}, f"{'raw ' * len(raw)}{axis}", symbols)


def over_steps(
    curves: Mapping[str, Series],
    width: int = 80,
    height: int = 12,
    ascii_only: bool = False,
    *,
    label: Callable[[float], str] = "{:.4g} ".format,
    title: str = "",
) -> str:
    """Curves over training steps as text, each with its mark; the last is on top.

    A column that several points fall into has their mean.

    Args:
        curves: by their labels, at least one, each with a point; from the fifth on marks are used again.
        width: columns of the terminal, at least 40.
        height: lines of the plot, at least 3.
        ascii_only: for a terminal without Unicode.
        label: the text at the axis for its highest and lowest value.
        title: put before the legend.

    Returns:
        Lines of text, none wider than ``width`` unless the legend is.

    Examples:
        >>> raw, average = Series((1, 2, 3), (0.5, 0.9, 0.7)), Series((1, 2, 3), (0.6, 0.9, 0.9))
        >>> print(over_steps({"raw": raw, "average": average}, width=40, height=5))
        0.9 ┤               ··●················●
            │         ······       ········
            │   ········                   ····○
            │●······
        0.5 ┤○··
            └───────────────────────────────────
             1         ○ raw, ● average        3
    """
    symbols = _ASCII if ascii_only else _UNICODE
    marks = [("o@#*" if ascii_only else "○●◆■")[i % 4] for i in range(len(curves))]
    low, high = limits([curve.values for curve in curves.values()])
    labels = {0: label(high), height - 1: label(low)}
    room = width - max(map(len, labels.values())) - 1
    first = min(curve.steps[0] for curve in curves.values())
    last = max(curve.steps[-1] for curve in curves.values())
    canvas = [[" "] * room for _ in range(height)]

    def put(column: int, value: float, mark: str) -> None:
        if low <= value <= high:
            canvas[round((high - value) / ((high - low) or 1) * (height - 1))][column] = mark

    drawn = [_by_column(curve, first, last, room) for curve in curves.values()]
    for columns, values in drawn:
        between = range(columns[0], columns[-1] + 1)
        for column, value in zip(between, np.interp(between, columns, values).tolist(), strict=True):
            put(column, value, symbols.between)
    for mark, (columns, values) in zip(marks, drawn, strict=True):
        for column, value in zip(columns, values, strict=True):
            put(column, value, mark)
    start, end = f"{first:,.6g}", f"{last:,.6g}" if last > first else ""
    legend = title + ", ".join(f"{mark} {name}" for mark, name in zip(marks, curves, strict=True))
    foot = f"{start}{legend.center(room - len(start) - len(end))}{end}"
    return _framed(canvas, labels, foot, symbols)


def _framed(canvas: Sequence[Sequence[str]], labels: Mapping[int, str], foot: str, symbols: _Symbols) -> str:
    """The plot between its axes, with labels at these lines and text under it."""
    margin = max(map(len, labels.values()))
    lines = [
        f"{labels.get(y, ''):>{margin}}{symbols.tick if y in labels else symbols.side}{''.join(line)}"
        for y, line in enumerate(canvas)
    ]
    lines += [" " * margin + symbols.corner + symbols.floor * len(canvas[0]), f"{'':{margin + 1}}{foot}"]
    return "\n".join(line.rstrip() for line in lines)


def _by_column(curve: Series, first: float, last: float, room: int) -> tuple[list[int], list[float]]:
    """The columns in which a curve has points, and the mean of each."""
    share = (np.array(curve.steps) - first) / ((last - first) or 1)
    columns, places, counts = np.unique(
        np.round(share * (room - 1)).astype(int), return_inverse=True, return_counts=True
    )
    return columns.tolist(), (np.bincount(places, curve.values) / counts).tolist()


def limits(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The ends of an axis: at most five times what the second halves span, lest the rise flatten it.

    Examples:
        >>> limits([[9.0, 1.0, 0.5, 0.4, 0.5]])
        (0.4, 0.7)
    """
    late = np.concatenate([curve[(len(curve) - 1) // 2 :] for curve in curves])
    whole = np.concatenate(curves)
    span = np.ptp(late) or np.ptp(whole)
    low, high = max(whole.min(), late.min() - 2 * span), min(whole.max(), late.max() + 2 * span)
    return float(low), float(high)


def picture(record: SweepRecord, path: str | os.PathLike[str]) -> None:
    """Draw the same as a PNG; half-lives whose evaluation failed are crosses at the bottom.

    The raw weights are a square at the left edge, and a dotted line for comparison.

    Raises:
        MissingExtraError: matplotlib is not installed.
        CheckpointError: the file cannot be written.
    """
    try:
        # Not pyplot, which keeps its figures and needs a display.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    figure: Any = Figure(figsize=(7, 4.2), layout="constrained")
    axes: Any = figure.add_subplot()
    points, best = _measured(record), record.best
    axes.plot(*zip(*points, strict=True), "o-", color="tab:blue", markersize=4, linewidth=1)
    if best is not None:
        label = f"best: {best.metric:.6g} at {best.half_life:,.4g} steps"
        axes.plot(best.half_life, best.metric, "*", color="tab:red", markersize=15, label=label)
    for metric in _raw(record):
        square: dict[str, Any] = {"color": "black", "clip_on": False, "transform": axes.get_yaxis_transform()}
        axes.plot(0, metric, "s", label=f"raw weights: {metric:.6g}", **square)
        axes.axhline(metric, color="black", linestyle=":", linewidth=1)
    failed = [trial.half_life for trial in record.trials if trial.metric is None]
    if failed:
        foot = axes.get_xaxis_transform()
        axes.plot(failed, [0.02] * len(failed), "x", color="tab:gray", transform=foot, label="failed")
    axes.set(xscale="log", xlabel="half-life of the average, training steps", ylabel="metric")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _measured(record: SweepRecord) -> list[tuple[float, float]]:
    return [(trial.half_life, trial.metric) for trial in record.trials if trial.metric is not None]


def _raw(record: SweepRecord) -> list[float]:
    """The metric of the raw weights, if there is one."""
    return [] if record.raw is None or record.raw.metric is None else [record.raw.metric]


def _spread(values: Sequence[float], cells: int) -> list[int]:
    """The cell of each value if the smallest has the first and the largest the last."""
    low, span = min(values), max(values) - min(values)
    return [round((value - low) / span * (cells - 1)) if span else cells // 2 for value in values]


def _canvas(cells: Sequence[tuple[int, int]], width: int, height: int, symbols: _Symbols) -> list[list[str]]:
    """Points at (column, row) and straight lines between them."""
    canvas = [[" "] * width for _ in range(height)]
    for (x0, y0), (x1, y1) in pairwise(cells):
        for x in range(x0 + 1, x1):
            canvas[round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))][x] = symbols.between
    for x, y in cells:
        canvas[y][x] = symbols.point
    return canvas


def _axis(first: float, last: float, width: int) -> str:
    low, high = f"{first:,.4g}", f"{last:,.4g}"
    wide = width - len(low) - len(high)
    return f"{low}{('half-life, training steps' if wide > 26 else 'steps').center(wide)}{high}"


def caption(best: Trial) -> str:
    """The best trial in words."""
    return f"best: {best.metric:.6g} at a half-life of {best.half_life:,.4g} training steps"
