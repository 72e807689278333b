"""What every experiment shares: seeds, pairing, intervals, the verdict, and a report that can be continued.

An experiment is a function from a seed to numbers, and rows that say which two of the numbers to compare.
The report is written after each seed, so a run that was stopped goes on where it stopped, and a second call
with the same ``--out`` computes nothing. Further seeds (``--seeds 10``) are added to those that are there.
``--seed 3`` computes that seed alone into a report of its own, so that machines can share the work; a call
without it takes those reports in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from experiments.intervals import estimate
from polyak._files.write import atomic

RUNS = Path("runs/experiments")

Numbers = Mapping[str, Any]
"""What one seed comes to: by name a float, or a list of floats, which is a curve over evaluations."""

Size = Literal["quick", "full"]
Better = Literal["higher", "lower", "equal"]
Verdict = Literal["holds", "holds, smaller", "no difference seen", "does not hold"]


@dataclass(frozen=True)
class Data:
    """What is trained on, and under which licence."""

    name: str
    licence: str


@dataclass(frozen=True)
class Row:
    """Two numbers of each seed, beside each other.

    Args:
        metric: what is measured, with when and on what.
        unit: of both, and of their difference.
        better: which direction is an improvement; "equal" where the claim is that there is no difference.
        without: the number's name, and what it is measured on.
        with_average: the same for the other side.
        headline: whether the verdict follows from this row; true of one.
    """

    metric: str
    unit: str
    better: Better
    without: tuple[str, str]
    with_average: tuple[str, str]
    headline: bool = False


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published claim, and what is compared to try it.

    Args:
        name: of the report.
        claim: one sentence that could be false.
        published: who said so, with the figure.
        gain: the published improvement in the headline's unit, positive; None where none was published. Where
            "equal" is better, what counts as no difference.
        data: what is trained on.
        rows: what is compared; one of them is the headline.
        curves: by name of a number that is a curve, its unit and where its points are.
    """

    name: str
    claim: str
    published: str
    gain: float | None
    data: Data
    rows: tuple[Row, ...]
    curves: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment(Claim):
    """A claim and the training that tries it.

    Args:
        run: from a seed and the settings of a size to that seed's numbers; sets its own seeds.
        quick: settings of ``--quick``: two seeds in less than five minutes. JSON holds them.
        full: settings of the results that are committed, five seeds or more.
        seeds: of the full size.
    """

    run: Callable[[int, Any], Numbers]
    quick: Any
    full: Any
    seeds: int = 5


def verdict(difference: Mapping[str, float | None], better: Better, gain: float | None) -> Verdict:
    """What a 95 % interval of paired differences says about a claim, and nothing else.

    Args:
        difference: ``mean``, ``low`` and ``high`` of with minus without; one seed has no interval.
        better: the claimed side; "equal" claims that with and without are less than ``gain`` apart.
        gain: the published improvement, positive, or None.

    Returns:
        "holds" if the interval is on the claimed side and reaches the published figure, "holds, smaller" if
        it is on that side and stays below; "does not hold" on the other side; otherwise "no difference seen".
        Equality "holds" only if the whole interval is within ``gain`` of zero; an interval that is too wide
        for that and contains zero says "no difference seen".

    Examples:
        >>> verdict({"mean": 0.9, "low": 0.3, "high": 1.5}, "higher", gain=2.0)
        'holds, smaller'
        >>> verdict({"mean": -0.05, "low": -0.07, "high": -0.03}, "lower", gain=None)
        'holds'
    """
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "no difference seen"
    if better == "equal":
        assert gain is not None
        if -gain <= low and high <= gain:
            return "holds"
        return "no difference seen" if low <= 0 <= high else "does not hold"
    worst, best = (low, high) if better == "higher" else (-high, -low)
    if best < 0:
        return "does not hold"
    if worst <= 0:
        return "no difference seen"
    return "holds" if gain is None or best >= gain else "holds, smaller"


def difference(without: Sequence[float], with_average: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval of with minus without, paired by seed."""
    found = estimate([b - a for a, b in zip(without, with_average, strict=True)])
    mean, half = found["mean"], found["half"]
    assert mean is not None
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
    }


def compared(row: Row, runs: Sequence[Numbers]) -> dict[str, Any]:
    """A row of the report."""
    sides = {
        "without": {"what": row.without[1], "values": [run[row.without[0]] for run in runs]},
        "with": {"what": row.with_average[1], "values": [run[row.with_average[0]] for run in runs]},
    }
    facts = {"metric": row.metric, "unit": row.unit, "better": row.better, "headline": row.headline}
    return facts | sides | {"difference": difference(sides["without"]["values"], sides["with"]["values"])}


def report(
    claim: Claim, size: Size, settings: Any, runs: Mapping[str, Numbers], where: str | None = None
) -> dict[str, Any]:
    """The report of the seeds there are, computed ``where``: on this machine unless said."""
    ordered = list(runs.values())
    rows = [compared(row, ordered) for row in claim.rows]
    (headline,) = [row for row in rows if row["headline"]]
    return {
        "experiment": claim.name,
        "claim": claim.claim,
        "published": claim.published,
        "gain": claim.gain,
        "data": asdict(claim.data),
        "machine": where or machine(),
        "date": date.today().isoformat(),
        "quick": size == "quick",
        "settings": asdict(settings),
        "seeds": [int(seed) for seed in runs],
        "rows": rows,
        "verdict": verdict(headline["difference"], headline["better"], claim.gain),
        "seconds": sum(run["seconds"] for run in ordered),
        "curves": dict(claim.curves or {}),
        "runs": dict(runs),
    }


def machine() -> str:
    """The processor, how much of it was used, and the framework."""
    import torch

    cores = os.cpu_count()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {cores} cores, torch {torch.__version__}"


def continued(
    experiment: Experiment,
    size: Size,
    seeds: int,
    folder: Path,
    say: Callable[[str], None] = print,
    only: int | None = None,
) -> dict[str, Any]:
    """The report with at least so many seeds: what ``folder`` has of them, and the others computed.

    Args:
        experiment: what to run.
        size: "quick" or "full".
        seeds: how many.
        folder: where ``NAME-quick.json`` or ``NAME.json`` is, or will be.
        say: where a line about each seed goes.
        only: the one seed to compute, into ``NAME.seed-3.json``, from which a call without it takes the seed.

    Returns:
        The report, as written.
    """
    name = f"{experiment.name}{'-quick' if size == 'quick' else ''}"
    settings = getattr(experiment, size)
    path = folder / (f"{name}.json" if only is None else f"{name}.seed-{only}.json")
    parts = sorted(folder.glob(f"{name}.seed-*.json")) if only is None else []
    found: dict[str, Any] = {"runs": {}}
    runs: dict[str, Numbers] = {}
    machines: list[str] = []
    for there in [path, *parts]:
        kept = json.loads(there.read_text()) if there.exists() else {"settings": None}
        if kept["settings"] != json.loads(json.dumps(asdict(settings))):  # with other settings: begun anew
            continue
        found = kept if there == path else found
        if not kept["runs"].keys() <= runs.keys():
            machines += kept["machine"].split("; ")
        runs = kept["runs"] | runs

    def write() -> dict[str, Any]:
        ordered = {seed: runs[seed] for seed in sorted(runs, key=int)}
        made = report(experiment, size, settings, ordered, "; ".join(dict.fromkeys(machines)))
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(made, indent=1) + "\n")
        return made

    if runs.keys() != found["runs"].keys():
        found = write()
    for seed in range(seeds) if only is None else [only]:
        if str(seed) in runs:
            continue
        begun = perf_counter()
        numbers = experiment.run(seed, settings)
        runs[str(seed)] = {**numbers, "seconds": perf_counter() - begun}
        machines.append(machine())
        found = write()
        say(f"{experiment.name}, seed {seed}: {runs[str(seed)]['seconds']:.0f} s")
    return found


def table(found: Mapping[str, Any]) -> str:
    """A report as a terminal shows it."""
    lines = [found["claim"], f"Published: {found['published']}", ""]
    for row in found["rows"]:
        without, with_average = (estimate(row[side]["values"])["mean"] for side in ("without", "with"))
        change = row["difference"]
        interval = "one seed" if change["low"] is None else f"{change['low']:+.4g} … {change['high']:+.4g}"
        lines.append(
            f"{'* ' if row['headline'] else '  '}{row['metric']} ({row['unit']}, {row['better']} is better): "
            f"{row['without']['what']} {without:.4g}, {row['with']['what']} {with_average:.4g}, "
            f"difference {change['mean']:+.4g} ({interval})"
        )
    seeds = f"{len(found['seeds'])} seeds, {found['seconds']:.0f} s"
    return "\n".join(
        [*lines, "", f"Verdict: {found['verdict']} ({seeds}, {found['machine']}, {found['date']})"]
    )


def main(*experiments: Experiment, arguments: Sequence[str] | None = None) -> None:
    """``python -m experiments.NAME.run [--quick] [--seeds N | --seed K] [--out FOLDER]``."""
    import torch

    parser = argparse.ArgumentParser(description=" ".join(one.claim for one in experiments))
    parser.add_argument("--quick", action="store_true", help="a smaller size and two seeds: minutes")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--seeds", type=int, help="how many")
    some.add_argument("--seed", type=int, help="this one alone, counted from 0, in a report of its own")
    parser.add_argument("--out", type=Path, default=RUNS, help=f"folder of the report, {RUNS} unless named")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # small networks: a second thread costs more than it brings
    for one in experiments:
        size: Size = "quick" if options.quick else "full"
        seeds = options.seeds or (2 if options.quick else one.seeds)
        print(table(continued(one, size, seeds, options.out, only=options.seed)))
