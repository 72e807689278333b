"""`polyak doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import say
from polyak.cli.options import Json
from polyak.doctor import Examination, examine


def doctor(
    scripts: Annotated[list[Path], typer.Argument(help="Training scripts; read, not run.")],
    as_json: Json = False,
) -> None:
    """Find the mistakes training scripts make with averages.

    It lists the averages it recognised. The exit status is 0 if no mistake was found, and 1 otherwise.
    """
    seen = {script: examine(script) for script in scripts}
    found = any(one.findings for one in seen.values())
    if as_json:
        rows = [(str(script), one) for script, one in seen.items()]
        recognised = [{"file": s} | asdict(average) for s, one in rows for average in one.recognised]
        findings = [{"file": s} | asdict(finding) for s, one in rows for finding in one.findings]
        print(json.dumps({"recognised": recognised, "findings": findings}))
    else:
        say(*(line for script, one in seen.items() for line in _lines(script, one)))
    raise typer.Exit(1 if found else 0)


def _lines(script: Path, seen: Examination) -> Iterator[str]:
    for one in seen.recognised:
        updated = (
            f"updated in line {', '.join(map(str, one.updates))}" if one.updates else "no update seen here"
        )
        yield f"{script}:{one.line}: recognised {one.name or 'an average'} ({one.what}), {updated}."
    for finding in seen.findings:
        yield f"{script}:{finding.line}: {finding.says}. [{finding.check}]\n    instead: {finding.instead}"
    if not seen.recognised:
        yield f"{script}: no average found, so nothing was checked."
    elif not seen.findings:
        yield f"{script}: nothing to complain about."
