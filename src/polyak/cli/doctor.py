"""`polyak doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polyak.doctor import examine


def doctor(
    scripts: Annotated[list[Path], typer.Argument(help="Training scripts; read, not run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the mistakes training scripts make with averages.

    The exit status is 0 if none was found, and 1 otherwise.
    """
    found = [(script, finding) for script in scripts for finding in examine(script)]
    if as_json:
        print(json.dumps({"findings": [{"file": str(s)} | asdict(f) for s, f in found]}))
    else:
        lines = [f"{s}:{f.line}: {f.says}. [{f.check}]\n    instead: {f.instead}" for s, f in found]
        text = "\n".join(lines) or "Nothing to complain about."
        Console().print(text, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(1 if found else 0)
