"""Runs in the terminal: newest numbers, curves, what the averages are; as lines where it is no screen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live as Screen
from rich.table import Table
from rich.text import Text

from polyak.cli.console import ascii_only, printable
from polyak.report.curve import over_steps
from polyak.report.facts import Curve, Metric, Run
from polyak.report.live import Live
from polyak.report.metrics import RAW
from polyak.report.sections import principal
from polyak.report.words import number, percent

_FRAME = 0.25  # seconds: how late a new size of the window is noticed
_PLOT = 8  # lines of a plot, at least
_ROWS = 8  # metrics in the table, and averages, of one run


def is_screen() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


def draw(live: Live) -> None:
    """Fill the screen with the runs until an exception comes; then leave their last numbers in its place."""
    try:
        with Screen(Dashboard(live), console=Console(emoji=False), screen=True, auto_refresh=False) as screen:
            shown: tuple[object, ...] = ()
            while True:
                now = live.look().version, screen.console.size
                if now != shown:
                    screen.refresh()
                    shown = now
                time.sleep(_FRAME)
    finally:
        print(*map(printable, lines(live.look().runs)), sep="\n")


def lines(runs: Sequence[Run]) -> list[str]:
    """The newest numbers, one line for each run and metric, and one for each average."""
    found: list[str] = []
    for run in runs:
        for metric in run.metrics:
            newest = ", ".join(f"{_label(curve)} {number(curve.summary.last)}" for curve in metric.curves)
            gap = f", gap {_gap(metric)}" if _gap(metric) else ""
            found.append(
                f"{run.name}: {metric.axis} {number(_last_step(metric))}: {metric.name}: {newest}{gap}"
            )
        for one in principal(run):
            share = f", {percent(one.half_life / one.step)} of the run" if one.half_life and one.step else ""
            at = f" at step {number(one.step)}" if one.step is not None else ""
            found.append(f"{run.name}: {one.called}{at}: half-life {number(one.half_life or 0)} steps{share}")
        found += [f"{run.name}: not read: {problem}" for problem in run.problems]
    return found


class Dashboard:
    """What rich draws: it asks for the runs, and for the size of the screen, each time it is drawn."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        runs = self._live.look().runs
        height = console.size.height // len(runs)
        yield Group(*(part for run in runs for part in _run(run, console.size.width, height)))


def _run(run: Run, width: int, height: int) -> Iterator[RenderableType]:
    yield Text(printable(run.name), style="bold", no_wrap=True, overflow="ellipsis")
    left = height - 1
    for problem in run.problems[:2]:
        yield Text(printable(f"not read: {problem}"), style="red", no_wrap=True, overflow="ellipsis")
        left -= 1
    for table in (_metrics(run), _averages(run)):
        if table.row_count:
            yield table
            left -= table.row_count + 2
    if not run.metrics and not run.problems:
        yield Text("nothing logged yet", style="dim")
    shown = run.metrics[: max(1, left // (_PLOT + 3))]
    for metric in shown if left >= _PLOT else ():
        yield from _plot(metric, width, left // len(shown) - 3)


def _plot(metric: Metric, width: int, height: int) -> Iterator[RenderableType]:
    """Three lines around one plot."""
    yield Text(printable(metric.name), style="bold", no_wrap=True, overflow="ellipsis")
    curves = {printable(_label(curve)): curve.series for curve in metric.curves if curve.series.steps}
    if curves:
        drawn = over_steps(curves, max(40, width - 1), max(3, height), ascii_only())
        yield Text(drawn, no_wrap=True, overflow="crop")


def _metrics(run: Run) -> Table:
    table = _table("metric", "step", "raw", "average", "gap", "best")
    for metric in run.metrics[:_ROWS]:
        raw = next((curve for curve in metric.curves if curve.weights == RAW), None)
        others = [curve for curve in metric.curves if curve is not raw]
        for i, curve in enumerate(others or metric.curves):
            values = (_last(raw), _last(curve), _gap(metric)) if others and not i else ("", _last(curve), "")
            if not others:
                values = (_last(curve), "", "")
            name = f"{metric.name} · {_label(curve)}" if len(others) > 1 else metric.name
            _add(table, name, number(_last_step(metric)), *values, _best(curve))
    return table


def _averages(run: Run) -> Table:
    table = _table("average", "step", "half-life", "of the run", "mean age")
    for one in principal(run)[:_ROWS]:
        half_life = one.half_life or 0.0
        share = percent(half_life / one.step) if one.step else ""
        step = "" if one.step is None else number(one.step)
        _add(table, one.called, step, number(half_life), share, number(one.mean_age or 0))
    return table


def _table(*heads: str) -> Table:
    table = Table(box=box.ASCII if ascii_only() else box.SIMPLE_HEAD, show_edge=False, header_style="dim")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=True, overflow="ellipsis")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _label(curve: Curve) -> str:
    return curve.weights or "logged"


def _last(curve: Curve | None) -> str:
    return "" if curve is None else number(curve.summary.last)


def _best(curve: Curve) -> str:
    best, at = curve.summary.best, curve.summary.best_at
    return "" if best is None or at is None else f"{number(best)} at {number(at)}"


def _gap(metric: Metric) -> str:
    return f"{metric.gap.values[-1]:+.4g}" if metric.gap.values else ""


def _last_step(metric: Metric) -> float:
    return max((curve.series.steps[-1] for curve in metric.curves if curve.series.steps), default=0.0)
