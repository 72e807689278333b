"""Plots of metrics: over the run, over the half-life, and at decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from polyak.report.facts import Curve, DecisionFacts, Metric, Run, SweepFacts
from polyak.report.metrics import RAW
from polyak.report.plot import Band, Dot, Line, Plot, Rule, Style
from polyak.report.sweeps import error_bar
from polyak.report.words import Words, number, percent


def label_of(weights: str, words: Words) -> str:
    """What a reader calls these weights."""
    return words(weights) if weights in (RAW, "average") else weights


def metric_plots(runs: Sequence[Run], words: Words) -> list[Plot]:
    """One plot for each metric that has raw and averaged weights, then one for each other metric."""
    names = list(dict.fromkeys((len(m.curves) < 2, m.name) for run in runs for m in run.metrics))
    return [_metric_plot(name, runs, words) for _, name in sorted(names, key=lambda one: one[0])]


def _metric_plot(name: str, runs: Sequence[Run], words: Words) -> Plot:
    chosen = [(i, run, m) for i, run in enumerate(runs) for m in run.metrics if m.name == name]
    several = len(runs) > 1
    lines = [
        line for i, run, m in chosen for line in _curves(m, f"{run.name} · " if several else "", i, words)
    ]
    axis = words("x epoch" if all(m.axis == "epoch" for _, _, m in chosen) else "x step")
    ends = " ".join(
        words("ends at", name=label, value=number(value)) for label, value in _ends(chosen, words)
    )
    return Plot(
        name=f"metric-{name}",
        title=name,
        alt=words("curves alt", metric=name, axis=axis, ends=ends),
        note="",
        x=axis,
        y=name,
        lines=tuple(lines),
        bands=() if several else tuple(_gap_band(m) for _, _, m in chosen if len(m.gap.steps) > 1),
        dots=tuple(dot for i, _, m in chosen for dot in _best_dots(m, i if several else None)),
        domain=_domain(lines),
    )


def _curves(metric: Metric, prefix: str, run: int, words: Words) -> Iterator[Line]:
    for k, curve in enumerate(metric.curves):
        raw = curve.weights == RAW or (curve.weights == "" and len(metric.curves) == 1)
        label = metric.name if curve.weights == "" else label_of(curve.weights, words)
        ink = _ink(curve, k, run if prefix else None)
        style: Style = "dashed" if prefix and raw and len(metric.curves) > 1 else "solid"
        width = 1.4 if raw else 2.2
        yield Line(prefix + label, ink, curve.series.steps, curve.series.values, style, width)


def _ink(curve: Curve, place: int, run: int | None) -> str:
    if run is not None:
        return f"run{run % 6}"
    if curve.weights in ("", RAW):
        return "raw"
    return "average" if place < 2 else f"run{place % 6}"


def _ends(chosen: Sequence[tuple[int, Run, Metric]], words: Words) -> Iterator[tuple[str, float]]:
    several = len(chosen) > 1
    for _, run, metric in chosen:
        for curve in metric.curves:
            name = label_of(curve.weights, words) if curve.weights else metric.name
            yield f"{run.name} {name}" if several else name, curve.summary.last


def _gap_band(metric: Metric) -> Band:
    """The area between raw weights and average, at the steps of the gap."""
    raw = next(curve for curve in metric.curves if curve.weights == RAW)
    at = np.interp(metric.gap.steps, raw.series.steps, raw.series.values)
    high = at + np.asarray(metric.gap.values)
    return Band("average", metric.gap.steps, tuple(at.tolist()), tuple(high.tolist()))


def _best_dots(metric: Metric, run: int | None) -> Iterator[Dot]:
    for k, curve in enumerate(metric.curves):
        if curve.summary.best is not None and curve.summary.best_at is not None and len(metric.curves) > 1:
            yield Dot("", _ink(curve, k, run), curve.summary.best_at, curve.summary.best)


def _domain(lines: Sequence[Line]) -> tuple[float, float] | None:
    """The ends of the axis: at most four times what the second half spans, lest the rise flatten it."""
    curves = [np.array([v for v in line.y if v is not None]) for line in lines]
    curves = [values for values in curves if len(values)]
    if not curves:
        return None
    every, late = (
        np.concatenate(curves),
        np.concatenate([values[(len(values) - 1) // 2 :] for values in curves]),
    )
    span = float(np.ptp(late) or np.ptp(every)) or abs(float(every[0])) * 0.1 or 1.0
    low, high = max(every.min(), late.min() - 1.5 * span), min(every.max(), late.max() + 1.5 * span)
    margin = 0.06 * (high - low) or 0.5 * span
    return float(low - margin), float(high + margin)


def sweep_plot(sweep: SweepFacts, words: Words, run: str = "") -> Plot:
    """The U-curve: metric over half-life, bars for the synthesis error, raw as a rule, the best named."""
    dots: list[Dot] = []
    for point in sweep.points:
        bar, chosen = error_bar(point, sweep.raw), point == sweep.best
        low, high = (None, None) if bar is None else (point.metric - bar, point.metric + bar)
        label = words("chosen", half_life=number(point.half_life)) if chosen else ""
        dots.append(
            Dot(label, "best" if chosen else "average", point.half_life, point.metric, low, high, not chosen)
        )
    best = sweep.best
    said = (
        "" if best is None else words("best at", value=number(best.metric), half_life=number(best.half_life))
    )
    raw = "" if sweep.raw is None else words("raw at", value=number(sweep.raw))
    facts = {
        "count": len(sweep.points),
        "step": number(sweep.step),
        "direction": words(sweep.mode),
        "failed": words("failed", count=sweep.failed) if sweep.failed else "",
        "error": percent(max((one.error for one in sweep.points), default=0.0)),
    }
    x, y = (
        zip(*((one.half_life, one.metric) for one in sweep.points), strict=True) if sweep.points else ((), ())
    )
    return Plot(
        name=f"sweep-{sweep.name}",
        title=f"{run}{sweep.name}",
        alt=words("sweep alt", count=len(sweep.points), best=f"{said}. " if said else "", raw=raw),
        note=words("sweep note" if sweep.raw is not None else "sweep note no raw", **facts),
        x=words("x half-life"),
        y=words("metric"),
        lines=(Line("", "average", x, y, width=1.4),) if sweep.points else (),
        dots=tuple(dots),
        rules=(Rule(raw, "raw", sweep.raw),) if sweep.raw is not None else (),
        log_x=True,
    )


def decision_plot(facts: DecisionFacts, words: Words, run: str = "") -> Plot:
    """The metric at each decision; what was saved is filled."""
    known = [i for i, metric in enumerate(facts.metrics) if metric is not None]
    saved = [i for i in known if facts.saved[i]]
    best = facts.metrics[saved[-1]] if saved else None
    x, y = [facts.steps[i] for i in known], [facts.metrics[i] for i in known]
    dots = [Dot("", "average", facts.steps[i], facts.metrics[i] or 0.0, hollow=i not in saved) for i in known]
    if saved:
        last = known.index(saved[-1])
        dots[last] = replace(dots[last], label=f"{words('best')} {number(best or 0.0)}")
    said = "–" if best is None else number(best)
    return Plot(
        name=f"decisions-{facts.name}",
        title=f"{run}{facts.name}",
        alt=words("decisions alt", count=len(facts.steps), saved=len(saved), best=said),
        note="",
        x=words("x step"),
        y=words("metric"),
        lines=(Line("", "raw", x, y, width=1.2),),
        dots=tuple(dots),
    )
