"""Part 6: merged weights beside trained ones, of an archive's sweeps and of a folder of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from polyak._files.header import FileShare
from polyak.report.checkpoints import (
    Checkpoint,
    Kind,
    checkpoints_of,
    commands,
    is_series,
    kind_of,
)
from polyak.report.facts import Judged, Run, SweepFacts, Weights
from polyak.report.logged import logged_value
from polyak.report.markup import Section, note, table
from polyak.report.plot import Dot, Line, Plot
from polyak.report.words import Words, number
from polyak.schedules.golden_section import best_of

_ROWS = 60  # of the table of checkpoints, of one run: the newest
_NAMED = 6  # checkpoints of an average that are named
_INKS: Mapping[Kind, str] = {"trained": "raw", "several": "run1", "average": "run3", "merged": "average"}


def merged(runs: Sequence[Run], words: Words) -> Section:
    """Merged weights beside trained ones."""
    several = len(runs) > 1
    found = [plot for run in runs for plot in _plots(run, words, run.name if several else "")]
    series = [run for run in runs if is_series(checkpoints_of(run))]
    after = _table(series, words, several) if series else ""
    after += "".join(_missing(run, words, several) for run in series)
    before = "" if found or series else note(words("no merged"))
    return Section("merged", words("merged"), before, tuple(found), after)


def _plots(run: Run, words: Words, name: str) -> Iterator[Plot]:
    if (plot := _sweeps_plot(run, words, name)) is not None:
        yield plot
    for one in run.judged:
        if one.metrics or one.stale:
            yield _judged_plot(run, one, words, name)


class _Point(NamedTuple):
    """A file on the plot: where, and its metric."""

    kind: Kind
    x: float
    y: float


def _judged_plot(run: Run, judged: Judged, words: Words, name: str) -> Plot:
    """The metric of each file at its step; a line through the best of each kind."""
    files = {one.file: one for one in checkpoints_of(run)}
    places = {file: files[file].place for file in judged.metrics if file in files}
    by_epoch = all(place is None or place.by_epoch for place in places.values())
    rate = None if by_epoch else run.tokens_per_step
    points = [
        _Point(files[file].kind, place.at * (rate or 1.0), judged.metrics[file])
        for file, place in places.items()
        if place is not None and place.by_epoch is by_epoch
    ]
    lines = [_line(kind, points, judged, words) for kind in _INKS if any(one.kind == kind for one in points)]
    ends = [words("ends at", name=line.label, value=number(line.y[-1] or 0.0)) for line in lines]
    placed = [file for file, place in places.items() if place is not None and place.by_epoch is by_epoch]
    lost = [f"{file} ({number(value)})" for file, value in judged.metrics.items() if file not in placed]
    said = [words("judged note", command=judged.command, direction=words(judged.mode))]
    said += [words("judged nowhere", files=", ".join(lost))] if lost else []
    said += [words("judged stale", files=", ".join(judged.stale))] if judged.stale else []
    return Plot(
        name=f"merged-files-{run.name}",
        title=name,
        alt=words("judged alt", count=len(points), ends=" ".join(ends)),
        note=" ".join(said),
        x=words("x tokens" if rate else "x epoch" if by_epoch else "x step"),
        y=words("metric"),
        lines=tuple(lines),
        dots=tuple([Dot("", _INKS[one.kind], one.x, one.y) for one in points]),
    )


def _line(kind: Kind, points: Sequence[_Point], judged: Judged, words: Words) -> Line:
    better = max if judged.mode == "max" else min
    ours = [one for one in points if one.kind == kind]
    best = {x: better(one.y for one in ours if one.x == x) for x in sorted({one.x for one in ours})}
    return Line(_called(kind, words), _INKS[kind], list(best), list(best.values()), width=_width(kind))


def _width(kind: Kind) -> float:
    return 2.2 if kind == "merged" else 1.4


def _called(kind: Kind, words: Words) -> str:
    return words("average") if kind == "average" else words(f"{kind} line")


def _table(runs: Sequence[Run], words: Words, several: bool) -> str:
    """Which checkpoints there are, what the merged ones are made of, and what is known of each."""
    rows = [_Row(run, one, each) for run in runs for one in checkpoints_of(run)[-_ROWS:] for each in one.sets]
    texts = list(_texts(rows, words, several))
    numbers = list(_numbers(runs, words))
    title = words("checkpoints")
    drawn = table(
        [head for head, _ in (*texts, *numbers)],
        ([cell(row) for _, cell in (*texts, *numbers)] for row in rows),
        title,
        len(numbers),
    )
    said = [words("older left out", count=n) for n in [_left_out(runs)] if n]
    said += [words("unsaid")] if any(row.weights.role == "unknown" for row in rows) else []
    said += [words("logged note")] if any(run.logged for run in runs) else []
    return f"<h3>{escape(title)}</h3>{drawn}{note(' '.join(said)) if said else ''}"


class _Row(NamedTuple):
    """A set of weights in a file of a run."""

    run: Run
    file: Checkpoint
    weights: Weights


def _texts(rows: Sequence[_Row], words: Words, several: bool) -> Iterator[tuple[str, Callable[[_Row], str]]]:
    """Columns: the head, and the cell of a row."""
    if several:
        yield words("run"), lambda row: row.run.name
    yield words("file"), lambda row: row.file.file
    yield words("weights"), lambda row: _called(kind_of(row.weights), words)
    if any(row.weights.made_of for row in rows):
        yield words("made of"), lambda row: _made_of(row.weights, words)


def _numbers(runs: Sequence[Run], words: Words) -> Iterator[tuple[str, Callable[[_Row], str]]]:
    yield words("step"), lambda row: _step(row.file, words)
    if any(run.tokens_per_step for run in runs):
        yield words("tokens"), lambda row: _tokens(row.run, row.weights)
    for name in dict.fromkeys(metric.name for run in runs for metric in run.logged):
        yield words("logged", name=name), lambda row, name=name: _logged(row, name)
    commands = list(dict.fromkeys(one.command for run in runs for one in run.judged))
    for command in commands:
        head = words("metric") if len(commands) == 1 else command
        yield head, lambda row, command=command: _judged(row, command)


def _left_out(runs: Sequence[Run]) -> int:
    return sum(max(0, len(checkpoints_of(run)) - _ROWS) for run in runs)


def _step(one: Checkpoint, words: Words) -> str:
    if one.place is None:
        return "–"
    return words("epoch n", n=one.place.at) if one.place.by_epoch else number(one.place.at)


def _tokens(run: Run, one: Weights) -> str:
    return _number(one.step * run.tokens_per_step if run.tokens_per_step and one.step is not None else None)


def _logged(row: _Row, name: str) -> str:
    values = (logged_value(metric, row.weights) for metric in row.run.logged if metric.name == name)
    return _number(next(values, None))


def _judged(row: _Row, command: str) -> str:
    given = (one.metrics for one in row.run.judged if one.command == command)
    return _number(next((metrics[row.file.file] for metrics in given if row.file.file in metrics), None))


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _made_of(one: Weights, words: Words) -> str:
    """The checkpoints of an average and their weights, in their order."""
    if not one.made_of:
        return ""
    shown, more = one.made_of[:_NAMED], len(one.made_of) - _NAMED
    first = shown[0].weight
    if all(abs(other.weight - first) < 1e-6 * abs(first) for other in one.made_of):
        names = ", ".join(_source(other, words) for other in shown)
        text = words("each of", weight=number(first), names=names)
    else:
        named = [(number(other.weight), _source(other, words)) for other in shown]
        text = ", ".join(words("part of", weight=weight, name=name) for weight, name in named)
    return text + (words("and more", count=more) if more > 0 else "")


def _source(one: FileShare, words: Words) -> str:
    if one.name:
        return one.name
    return words("unknown") if one.step is None else words("step n", n=number(one.step))


def _missing(run: Run, words: Words, several: bool) -> str:
    """What to run for the metrics that are missing."""
    lines = commands(run)
    if not lines:
        return ""
    label = words("judge in", name=run.name) if several else words("judge")
    code = escape("\n".join(lines))
    return (
        f"<p class=note>{escape(label)}</p>"
        f'<div class="scroll commands" tabindex=0 role=region aria-label="{escape(label)}">'
        f"<pre><code>{code}</code></pre></div>"
    )


def _sweeps_plot(run: Run, words: Words, name: str) -> Plot | None:
    """Merged weights beside trained ones at the steps of several sweeps; None for fewer than two steps."""
    steps = sorted({sweep.step for sweep in run.sweeps if sweep.best is not None})
    if len(steps) < 2:
        return None
    rate = run.tokens_per_step
    at = {sweep.step: sweep.step * rate if rate else float(sweep.step) for sweep in run.sweeps}
    raw = {sweep.step: sweep.raw for sweep in run.sweeps if sweep.raw is not None}
    best = {step: _best_at(run.sweeps, step) for step in steps}
    lines = [
        Line(words(name), ink, [at[step] for step in values], list(values.values()), width=width)
        for name, ink, values, width in (
            ("trained line", "raw", dict(sorted(raw.items())), 1.4),
            ("merged line", "average", best, 2.2),
        )
        if values
    ]
    ends = [words("ends at", name=line.label, value=number(line.y[-1] or 0.0)) for line in lines]
    return Plot(
        name=f"merged-{run.name}",
        title=name,
        alt=words("merged alt", count=len(steps), ends=" ".join(ends)),
        note=words("merged note"),
        x=words("x tokens" if rate else "x step"),
        y=words("metric"),
        lines=tuple(lines),
        dots=tuple(
            Dot("", line.ink, x or 0.0, y or 0.0)
            for line in lines
            for x, y in zip(line.x, line.y, strict=True)
        ),
    )


def _best_at(sweeps: Sequence[SweepFacts], step: int) -> float:
    found = {sweep.best.metric: sweep for sweep in sweeps if sweep.step == step and sweep.best is not None}
    mode = next(iter(found.values())).mode
    best = best_of({metric: metric for metric in found}, mode)
    return best if best is not None else next(iter(found))
