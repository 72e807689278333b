"""`polyak doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import complain, say
from polyak.cli.options import Json
from polyak.doctor import Examination, Finding, Recognised, examine, find_scripts
from polyak.errors import ConfigError


def doctor(
    scripts: Annotated[
        list[Path], typer.Argument(help="Training scripts, notebooks, or folders of them; read, not run.")
    ],
    as_json: Json = False,
) -> None:
    """Find the mistakes training scripts make with averages.

    It lists the averages it recognised. The exit status is 0 if no mistake was found, and 1 otherwise.
    """
    files = [file for one in scripts for file in find_scripts(one)]
    seen = dict(_examined(files, set(scripts)))
    if as_json:
        recognised = [_row(file, one, average) for file, one in seen.items() for average in one.recognised]
        findings = [_row(file, one, finding) for file, one in seen.items() for finding in one.findings]
        print(json.dumps({"recognised": recognised, "findings": findings}))
    else:
        for file, one in seen.items():
            if one.recognised or file in scripts:
                say(*_lines(file, one))
        if any(file not in scripts for file in files) or not files:
            say(f"{len(seen)} files read, averages in {sum(bool(one.recognised) for one in seen.values())}.")
    raise typer.Exit(1 if any(one.findings for one in seen.values()) else 0)


def _examined(files: list[Path], given: set[Path]) -> Iterator[tuple[Path, Examination]]:
    """Each file's examination; an unreadable file of a folder is a line on stderr."""
    for file in files:
        try:
            yield file, examine(file)
        except ConfigError as error:
            if file in given:
                raise
            complain(error)


def _row(file: Path, seen: Examination, one: Recognised | Finding) -> dict[str, object]:
    """One line of the report for JSON; in a notebook ``line`` counts through all code cells."""
    place = {"place": seen.source.place(one.line)} if seen.source.cells else {}
    return {"file": str(file), **place, **asdict(one)}


def _lines(file: Path, seen: Examination) -> Iterator[str]:
    place = seen.source.place
    for one in seen.recognised:
        lines = ("" if seen.source.cells else "line ") + ", ".join(map(place, one.updates))
        updated = f"updated in {lines}" if one.updates else "no update seen here"
        yield f"{file}:{place(one.line)}: recognised {one.name or 'an average'} ({one.what}), {updated}."
    for one in seen.findings:
        yield f"{file}:{place(one.line)}: {one.message}. [{one.check}]"
        yield f"    instead: {one.fix}"
    if not seen.recognised:
        yield f"{file}: no average found, so nothing was checked."
    elif not seen.findings:
        yield f"{file}: nothing to complain about."
