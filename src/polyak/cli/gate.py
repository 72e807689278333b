"""`polyak gate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from polyak.cli.printing import complain, say
from polyak.errors import PolyakError
from polyak.select.evaluate import EvalCommand
from polyak.select.gate import Gate, Verdict, judge

UNKNOWN = 2  # exit status: something could not be evaluated, so nothing is known


def gate(
    new: Annotated[Path, typer.Argument(help="The file that asks to pass.")],
    best: Annotated[Path, typer.Argument(help="The file to beat.")],
    command: Annotated[
        str, typer.Option("--eval", help="Its last line of stdout is the metric of {weights}.")
    ],
    min_gain: Annotated[float, typer.Option(help="Pass if better by at least this.")] = 0.0,
    mode: Annotated[str, typer.Option(help="max if a larger metric is better, or min.")] = "max",
    shell: Annotated[bool, typer.Option("--shell", help="Run the command in a shell.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one evaluation.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Pass when BEST is not there yet.")
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Copy NEW over BEST if it passes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Pass only if NEW beats BEST.

    The exit status is 0 if it does, 1 if it does not, and 2 if that is not known.
    """
    chosen: Any = mode
    try:
        asked = Gate(
            new, best, EvalCommand(command, shell, timeout), chosen, min_gain, allow_missing, promote
        )
        verdict = judge(asked)
    except PolyakError as error:
        if as_json:
            print(json.dumps({"passed": False, "error": str(error)}))
        complain(error)
        raise typer.Exit(UNKNOWN) from error
    if as_json:
        print(json.dumps(asdict(verdict) | {"min_gain": min_gain, "mode": mode}))
    else:
        say(*_lines(asked, verdict))
    raise typer.Exit(0 if verdict.passed else 1)


def _lines(asked: Gate, verdict: Verdict) -> list[str]:
    lines = [f"new   {verdict.new:<12.8g} {asked.new}"]
    if verdict.gain is None:
        lines += ["best  none yet", "passed: there is nothing to beat"]
    else:
        wanted = f"at least {asked.min_gain:g}" if asked.min_gain else "more than 0"
        lines += [
            f"best  {verdict.best:<12.8g} {asked.best}",
            f"gain  {verdict.gain:<+12.8g} {asked.mode}, wanted {wanted}",
            "passed" if verdict.passed else "did not pass",
        ]
    return [*lines, f"copied {asked.new} to {asked.best}"] if verdict.promoted else lines
