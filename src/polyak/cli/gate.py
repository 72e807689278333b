"""`polyak gate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import complain, say
from polyak.errors import PolyakError
from polyak.select.evaluate import EvalCommand
from polyak.select.gate import Gate, Verdict, judge
from polyak.select.metric import Mode

UNKNOWN = 2  # exit status: a file could not be evaluated


def gate(
    new: Annotated[Path, typer.Argument(help="The file to judge.")],
    best: Annotated[Path, typer.Argument(help="The file to beat.")],
    command: Annotated[
        str,
        typer.Option("--eval", help="Command that evaluates {weights}; its last output line is the metric."),
    ],
    min_gain: Annotated[float, typer.Option(help="Pass if better by at least this.")] = 0.0,
    mode: Annotated[Mode, typer.Option(help="max: a larger metric is better; min: a smaller.")] = "max",
    shell: Annotated[bool, typer.Option("--shell", help="Run the command in a shell.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one evaluation.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Pass if BEST does not exist yet.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Copy NEW over BEST if it passes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Pass only if NEW beats BEST.

    The exit status is 0 if it does, 1 if it does not, and 2 if a file cannot be evaluated.
    """
    try:
        evaluate = EvalCommand(command, shell, timeout)
        options = Gate(new, best, evaluate, mode, min_gain, allow_missing, promote)
        verdict = judge(options)
    except PolyakError as error:
        if as_json:
            print(json.dumps({"passed": False, "error": str(error)}))
        complain(error)
        raise typer.Exit(UNKNOWN) from error
    if as_json:
        print(json.dumps(asdict(verdict) | {"min_gain": min_gain, "mode": mode}))
    else:
        say(*_lines(options, verdict))
    raise typer.Exit(0 if verdict.passed else 1)


def _lines(options: Gate, verdict: Verdict) -> list[str]:
    lines = [f"new   {verdict.new:<12.8g} {options.new}"]
    if verdict.gain is None:
        lines += ["best  none yet", "passed: there is nothing to beat"]
    else:
        required = f"at least {options.min_gain:g}" if options.min_gain else "more than 0"
        lines += [
            f"best  {verdict.best:<12.8g} {options.best}",
            f"gain  {verdict.gain:<+12.8g} {options.mode}, required {required}",
            "passed" if verdict.passed else "did not pass",
        ]
    return [*lines, f"copied {options.new} to {options.best}"] if verdict.promoted else lines
