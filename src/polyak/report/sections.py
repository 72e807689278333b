"""The seven parts of the page: what each says in words and tables, and which plots it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version

from polyak.report import curve_plots, profile_plots
from polyak.report.curve_plots import label_of
from polyak.report.facts import Run, Weights
from polyak.report.markup import Section, note, table
from polyak.report.merged import merged
from polyak.report.metrics import RAW
from polyak.report.plot import Plot
from polyak.report.words import Words, duration, number, percent, size

_FILES = 60  # rows of the table of files, of one run


def sections(runs: Sequence[Run], words: Words) -> list[Section]:
    """All seven, in their order; one without facts says how to get them."""
    parts = (averages, curves, sweep, profile, distance, merged, cost)
    return [part(runs, words) for part in parts]


def averages(runs: Sequence[Run], words: Words) -> Section:
    """The header card: figures of each average, a sentence for a paper, and which file has which weights."""
    described = [(run, one) for run in runs for one in principal(run)]
    several = len(runs) > 1
    # Of an average of files that do not say what they are the files are known, and no figures.
    mixed = [one for run in runs for one in run.weights if one.made_of and one.half_life is None]
    text = _problems(runs, words)
    if described:
        text += _card(described, several, words)
    if described or mixed:
        text += _pasted([*(one for _, one in described), *mixed], words)
    else:
        text += note(words("no averages"))
    return Section("averages", words("averages"), text + _files(runs, several, words))


def principal(run: Run) -> list[Weights]:
    """The averages that a run is about; of one by name, what each pattern decides."""
    return [part for one in _averages(run) for part in one.rules or (one,) if part.half_life is not None]


def _averages(run: Run) -> list[Weights]:
    """Those in its files, each once, and otherwise its archive's newest."""
    files = [one for one in run.weights if one.role == "average"]
    candidates = [*files, *(one for archive in run.archives for one in archive.newest)]
    seen: dict[tuple[object, ...], Weights] = {}
    for one in candidates:
        if one.half_life is not None or one.rules:
            seen.setdefault((one.name, one.step, one.schedule, one.run, one.made_of), one)
    return list(seen.values())[:6]


def _card(described: Sequence[tuple[Run, Weights]], several: bool, words: Words) -> str:
    weights = [one for _, one in described]
    names = [label_of(one.name, words) + (f", {one.pattern}" if one.pattern else "") for one in weights]
    heads = [
        f"{run.name} · {name}" if several else name for name, (run, _) in zip(names, described, strict=True)
    ]
    rows: list[tuple[str, list[str]]] = [
        (words("schedule"), [_schedule(one, words) for one in weights]),
        (words("half-life"), [words("steps", n=number(one.half_life or 0)) for one in weights]),
        (words("share of run"), [_share(one, words) for one in weights]),
    ]
    for unit in ("samples", "tokens"):
        values = [_in_units(run, one, unit) for run, one in described]
        if any(value is not None for value in values):
            rows.append((words(f"half-life {unit}"), ["–" if v is None else number(v) for v in values]))
    rows += [
        (words("mean age"), [words("steps", n=number(one.mean_age or 0)) for one in weights]),
        (words("effective samples"), [number(one.effective_samples or 0) for one in weights]),
        (words("weight on start"), [percent(one.initial_weight or 0) for one in weights]),
        (words("training steps"), ["–" if one.step is None else number(one.step) for one in weights]),
    ]
    return table(["", *heads], ((name, *cells) for name, cells in rows), words("averages"), card=True)


def _pasted(weights: Sequence[Weights], words: Words) -> str:
    """A sentence for each average, all but the first folded away."""
    copy = escape(words("copy"))
    sentences = dict.fromkeys(sentence(one, words) for one in weights)
    pasted = [
        f"<blockquote><p>{escape(text)}</p><button type=button class=copy>{copy}</button></blockquote>"
        for text in sentences
    ]
    paste = "".join(pasted[:1])
    if rest := pasted[1:]:
        summary = escape(words("more averages", count=len(rest)))
        paste += f"<details><summary>{summary}</summary>{''.join(rest)}</details>"
    return f"<h3>{escape(words('paste'))}</h3>{paste}"


def sentence(weights: Weights, words: Words) -> str:
    """What a paper says of an average."""
    if weights.made_of:
        return _sentence_merged(weights, words)
    share = ""
    if weights.step:
        share = words("sentence share", share=percent((weights.half_life or 0) / weights.step))
    return words(
        "sentence",
        what=words("weights of", pattern=weights.pattern) if weights.pattern else words("the weights"),
        schedule=weights.schedule or words("unknown"),
        steps=number(weights.step or 0),
        half_life=number(weights.half_life or 0),
        share=share,
        mean_age=number(weights.mean_age or 0),
        samples=number(weights.effective_samples or 0),
        initial=percent(weights.initial_weight or 0),
        version=version("polyak"),
    )


def _sentence_merged(weights: Weights, words: Words) -> str:
    steps = [one.step for one in weights.made_of if one.step is not None]
    span = ""
    if len(steps) == len(weights.made_of):
        span = words("sentence steps", first=number(min(steps)), last=number(max(steps)))
    return words("sentence merged", count=len(weights.made_of), steps=span, version=version("polyak"))


def _schedule(weights: Weights, words: Words) -> str:
    if weights.made_of:
        return words("mean of", count=len(weights.made_of))
    return weights.schedule or words("unknown")


def _share(weights: Weights, words: Words) -> str:
    return percent((weights.half_life or 0) / weights.step) if weights.step else words("unknown")


def _in_units(run: Run, weights: Weights, unit: str) -> float | None:
    if weights.unit == unit:
        return weights.half_life_units
    if unit == "tokens" and run.tokens_per_step and weights.half_life is not None:
        return weights.half_life * run.tokens_per_step
    return None


def _files(runs: Sequence[Run], several: bool, words: Words) -> str:
    rows = [
        (
            *([run.name] if several else []),
            one.file or "–",
            label_of(one.name, words),
            words(f"role {one.role}")
            if one.role in ("average", "raw", "resumable")
            else words("role unknown"),
            "–" if one.step is None else number(one.step),
            "–" if one.nbytes is None else size(one.nbytes),
        )
        for run in runs
        for one in (*run.weights, *(new for archive in run.archives for new in archive.newest))[:_FILES]
    ]
    if not rows:
        return ""
    heads = [*([words("run")] if several else []), *map(words, ("file", "weights", "role", "step", "size"))]
    return f"<h3>{escape(words('which file'))}</h3>{table(heads, rows, words('which file'), numbers=2)}"


def curves(runs: Sequence[Run], words: Words) -> Section:
    """Raw and averaged weights over the run, metric by metric."""
    drawn = curve_plots.metric_plots(runs, words)
    paired = [plot for plot in drawn if _is_paired(plot, runs)]
    before = "" if drawn else note(words("no curves"))
    rows = list(_summaries(runs, words))
    heads = [*([words("run")] if len(runs) > 1 else []), words("metric"), words("weights")]
    heads += [words("last"), words("best"), words("jump"), words("gap")]
    after = ""
    if rows:
        after = table(heads, rows, words("curves"), numbers=4) + note(words("jump note"))
    folded = len(paired) if paired else None
    title = words("more metrics", count=len(drawn) - len(paired))
    return Section("curves", words("curves"), before, tuple(drawn), after, folded, title)


def _is_paired(plot: Plot, runs: Sequence[Run]) -> bool:
    return any(len(metric.curves) > 1 for run in runs for metric in run.metrics if metric.name == plot.title)


def _summaries(runs: Sequence[Run], words: Words) -> Iterator[tuple[str, ...]]:
    for run in runs:
        for metric in (one for one in run.metrics if len(one.curves) > 1):
            for curve in metric.curves:
                found = curve.summary
                best = "–"
                if found.best is not None and found.best_at is not None:
                    best = words("at", value=number(found.best), step=number(found.best_at))
                gap = f"{metric.gap.values[-1]:+.4g}" if curve.weights != RAW and metric.gap.values else ""
                yield (
                    *([run.name] if len(runs) > 1 else []),
                    metric.name,
                    label_of(curve.weights, words),
                    number(found.last),
                    best,
                    "–" if found.jump is None else number(found.jump),
                    gap,
                )


def sweep(runs: Sequence[Run], words: Words) -> Section:
    """The metric over the half-life."""
    drawn = [
        curve_plots.sweep_plot(one, words, _of(run, runs)) for run in runs for one in run.sweeps if one.points
    ]
    before = "" if drawn else note(words("no sweep"))
    return Section("sweep", words("sweep"), before, tuple(drawn))


def profile(runs: Sequence[Run], words: Words) -> Section:
    """What the averages are made of, and what other half-lives would be made of."""
    drawn: list[Plot] = []
    for run in runs:
        choosable = [one for one in run.archives if one.choices]
        drawn += [profile_plots.archive_plot(one, principal(run), words, _of(run, runs)) for one in choosable]
        alone = [] if choosable else principal(run)
        drawn += [
            profile_plots.weights_plot(w, w.profile, words, _of(run, runs))
            for w in alone
            if w.profile is not None
        ]
    before = "" if drawn else note(words("no profile"))
    return Section("profile", words("profile"), before, tuple(drawn))


def distance(runs: Sequence[Run], words: Words) -> Section:
    """How far layers are from their averages, and which updates were skipped."""
    drawn: list[Plot] = []
    for run in runs:
        of = _of(run, runs)
        measured = [(one.distances, one.name) for one in run.archives]
        drawn += [profile_plots.distance_plot(d, name, words, of) for d, name in measured if d is not None]
        if logged := {track: one for track, one in run.distances.items() if one.values}:
            drawn.append(profile_plots.logged_distance_plot(logged, run.name, words, of))
    before = "" if drawn else note(words("no distance"))
    rows = [
        (
            *([run.name] if len(runs) > 1 else []),
            number(one.step),
            number(one.updates),
            ", ".join(f"{name} ({count})" for name, count in one.tensors.items()),
        )
        for run in runs
        for archive in run.archives
        for one in archive.skipped
    ]
    logged = [(run, run.skipped) for run in runs if run.skipped is not None and run.skipped.values]
    for run, series in logged:
        if series.values[-1] > 0 and not any(archive.skipped for archive in run.archives):
            own = [run.name] if len(runs) > 1 else []
            rows.append((*own, number(series.steps[-1]), number(series.values[-1]), "–"))
    after = ""
    if rows:
        heads = [
            *([words("run")] if len(runs) > 1 else []),
            words("up to step"),
            words("updates"),
            words("tensors"),
        ]
        title = words("skipped")
        after = f"<h3>{escape(title)}</h3>{table(heads, rows, title)}{note(words('skipped note'))}"
    elif drawn:
        after = note(words("no skips"))
    return Section("distance", words("distance"), before, tuple(drawn), after)


def cost(runs: Sequence[Run], words: Words) -> Section:
    """Time, memory and engine, decisions, environment."""
    drawn = [
        curve_plots.decision_plot(one, words, _of(run, runs))
        for run in runs
        for one in run.decisions
        if one.steps
    ]
    heads = ["", *(run.name for run in runs)]
    rows: list[tuple[str, ...]] = [
        (words("update time"), *(_spent(run, words) for run in runs)),
        (words("share of step"), *(_share_of_step(run, words) for run in runs)),
        (words("bytes"), *(_bytes(run, words) for run in runs)),
    ]
    names = list(dict.fromkeys(name for run in runs for name in run.cost.environment))
    rows += [(name, *(run.cost.environment.get(name, "–") for run in runs)) for name in names]
    text = table(heads, rows, words("cost"))
    if not names:
        text += note(f"{words('environment')}: {words('no environment')}")
    said = [_decided(run, words, len(runs) > 1) for run in runs]
    return Section("cost", words("cost"), text, tuple(drawn), "".join(said))


def _spent(run: Run, words: Words) -> str:
    if run.cost.seconds is None or not run.cost.steps:
        return words("not measured")
    each = duration(run.cost.seconds / run.cost.steps)
    return words("per step", total=duration(run.cost.seconds), each=each)


def _share_of_step(run: Run, words: Words) -> str:
    if run.cost.seconds is None or run.cost.train is None or not run.cost.train:
        return words("not measured")
    return percent(run.cost.seconds / (run.cost.train + run.cost.seconds))


def _bytes(run: Run, words: Words) -> str:
    sizes = [one.nbytes for one in _averages(run) if one.nbytes is not None]
    return size(sum(sizes)) if sizes else words("unknown")


def _decided(run: Run, words: Words, several: bool) -> str:
    lines = [f"{one.name}: {number(one.steps[-1])}: {one.reasons[-1]}" for one in run.decisions if one.steps]
    for one in run.adaptive:
        scores = ", ".join(f"{track} {score:+.4g}" for track, score in one.scores.items())
        lines.append(words("adaptive", following=one.following, switches=one.switches))
        lines[-1] += f" {words('scores', scores=scores)}" if scores else ""
    named = f"<h3>{escape(run.name)}</h3>" if several and lines else ""
    return named + "".join(f"<p>{escape(line)}</p>" for line in lines)


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f"{run.name} · " if len(runs) > 1 else ""


def _problems(runs: Sequence[Run], words: Words) -> str:
    found = [problem for run in runs for problem in run.problems]
    if not found:
        return ""
    items = "".join(f"<li>{escape(problem)}</li>" for problem in found)
    return f"<div class=problems><p>{escape(words('not read'))}</p><ul>{items}</ul></div>"
