"""`polyak gate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import complain, say
from polyak.cli.options import Better, Eval, Json, Shell, Timeout
from polyak.errors import PolyakError
from polyak.select.evaluate import EvalCommand
from polyak.select.gate import Gate, Verdict, judge, metrics_of
from polyak.select.judged import begin_record, record

UNKNOWN = 2  # exit status: a file could not be evaluated


def gate(
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The file to judge.")],
    best: Annotated[list[Path], typer.Argument(metavar="BEST", help="The files to beat, all of them.")],
    command: Eval,
    min_gain: Annotated[float, typer.Option(help="Pass if better by at least this.")] = 0.0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Evaluations of each file; {repeat} in the command is 0, 1, …")
    ] = 1,
    mode: Better = "max",
    shell: Shell = False,
    timeout: Timeout = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Pass if BEST does not exist yet.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Copy NEW over BEST if it passes.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option("--record", metavar="FOLDER", help="Append the metrics to FOLDER/gate.jsonl."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Pass only if NEW beats BEST.

    With --repeats the lower end of the gain's 95 % interval decides, from the
    differences of evaluations in pairs. The exit status is 0 if NEW passes, 1 if
    it does not, and 2 if a file cannot be evaluated.
    """
    try:
        evaluate = EvalCommand(command, shell, timeout)
        options = Gate(new, best, evaluate, mode, min_gain, allow_missing, promote, repeats)
        if keep is not None:
            begin_record(keep)
        verdict = judge(options)
        if keep is not None:
            record(keep, command, mode, metrics_of(options, verdict))
    except PolyakError as error:
        if as_json:
            print(json.dumps({"passed": False, "error": str(error)}))
        complain(error)
        raise typer.Exit(UNKNOWN) from error
    if as_json:
        print(json.dumps(_figures(options, verdict)))
    else:
        say(*_lines(options, verdict))
    raise typer.Exit(0 if verdict.passed else 1)


def _figures(options: Gate, verdict: Verdict) -> dict[str, object]:
    """Metric and gain are those of the comparison that decides."""
    closest = verdict.closest
    return {
        "new": verdict.new,
        "best": None if closest is None else closest.metric,
        "gain": None if closest is None else closest.gain,
        "passed": verdict.passed,
        "promoted": verdict.promoted,
        "min_gain": options.min_gain,
        "mode": options.mode,
        "repeats": options.repeats,
        "against": [asdict(one) for one in verdict.against],
    }


def _lines(options: Gate, verdict: Verdict) -> Iterator[str]:
    required = f"at least {options.min_gain:g}" if options.min_gain else "more than 0"
    yield f"new   {verdict.new:<12.8g} {options.new}"
    for one in verdict.against:
        certain = f", with 95 % certainty {one.lower_bound:+.4g}" if options.repeats > 1 else ""
        yield f"best  {one.metric:<12.8g} {one.file}"
        yield f"gain  {one.gain:<+12.8g} {options.mode}{certain}, required {required}"
    if not verdict.against:
        yield "best  none yet"
        yield "passed: there is nothing to beat"
    else:
        yield "passed" if verdict.passed else "did not pass"
    if verdict.promoted:
        yield f"copied {options.new} to {options.best[0]}"
