"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from polyak.schedules.metric import Mode

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Eval: TypeAlias = Annotated[
    str,
    typer.Option(
        "--eval",
        metavar="COMMAND",
        help='A command to run, "python eval.py {weights}"; the last line it prints must be the metric.',
    ),
]
Better: TypeAlias = Annotated[Mode, typer.Option(help="max: a larger metric is better; min: a smaller.")]
Shell: TypeAlias = Annotated[bool, typer.Option("--shell", help="Run the command in a shell.")]
Timeout: TypeAlias = Annotated[float | None, typer.Option(help="Seconds for one evaluation.")]
MAX_ERROR = 0.02
MaxError: TypeAlias = Annotated[
    float, typer.Option(help="Largest expected error, as a share of the distance to the raw weights.")
]
