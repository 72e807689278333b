"""`polyak sweep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import ascii_only, complain, progress, say, say_table, width
from polyak.errors import MissingExtraError
from polyak.report.curve import caption, drawing, picture
from polyak.select.evaluate import EvalCommand, SweepRecord, Trial
from polyak.select.metric import Mode
from polyak.select.sweep import BEST, RECORD, Sweep
from polyak.select.sweep import sweep as run


def sweep(
    archive: Annotated[Path, typer.Argument(help="Folder of snapshots that polyak.Archive wrote.")],
    command: Annotated[
        str,
        typer.Option("--eval", help="Command that evaluates {weights}; its last output line is the metric."),
    ],
    mode: Annotated[Mode, typer.Option(help="max: a larger metric is better; min: a smaller.")] = "max",
    at: Annotated[
        int | None, typer.Option(help="Training step of the averages.", show_default="the last")
    ] = None,
    points: Annotated[int, typer.Option(help="Half-lives on the logarithmic grid.")] = 7,
    refine: Annotated[int, typer.Option(help="Golden-section steps after the grid.")] = 6,
    max_error: Annotated[
        float, typer.Option(help="Largest expected error, as a share of the distance to the raw weights.")
    ] = 0.02,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to.", show_default="ARCHIVE/sweep")
    ] = None,
    shell: Annotated[bool, typer.Option("--shell", help="Run the command in a shell.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one evaluation.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the best half-life by evaluating averages.

    They are synthesised from an archive. Run again, the command resumes where it stopped.
    """
    folder, evaluate = out or archive / "sweep", EvalCommand(command, shell, timeout)
    options = Sweep(archive, evaluate, folder, mode, at, points, refine, max_error)
    try:
        with progress("half-lives", "count") as tick:
            record = run(options, tick)
    except KeyboardInterrupt:
        complain(f"interrupted; the same command resumes from {folder / RECORD}")
        raise typer.Exit(130) from None
    drawn = _drawn(record, folder / "sweep.png")
    if as_json:
        print(json.dumps(record.to_json() | _files(record, folder, drawn)))
    else:
        _show(record, folder, drawn)
    if record.best is None:
        complain("every evaluation failed.")
        raise typer.Exit(1)


def _drawn(record: SweepRecord, path: Path) -> bool:
    """Draw the picture if matplotlib is installed; whether it was drawn."""
    if record.best is None:
        return False
    try:
        picture(record, path)
    except MissingExtraError as error:
        complain(f"{path} was not drawn: {error}")
        return False
    return True


def _files(record: SweepRecord, folder: Path, drawn: bool) -> dict[str, str | None]:
    return {
        "record": str(folder / RECORD),
        "weights": str(folder / BEST) if record.best is not None else None,
        "png": str(folder / "sweep.png") if drawn else None,
    }


def _show(record: SweepRecord, folder: Path, drawn: bool) -> None:
    headings = ("half-life, steps", "metric", "error", "noise gain", "seconds", "")
    say_table(headings, [_row(trial, trial is record.best) for trial in record.trials])
    if record.best is None:
        return
    say(*drawing(record, min(width(), 100), ascii_only=ascii_only()).splitlines())
    files = [name for name in _files(record, folder, drawn).values() if name is not None]
    say(caption(record.best), f"wrote {', '.join(files)}")


def _row(trial: Trial, is_best: bool) -> tuple[str, ...]:
    return (
        f"{trial.half_life:,.4g}",
        "failed" if trial.metric is None else f"{trial.metric:.6g}",
        "" if trial.error is None else f"{trial.error:.2%}",
        "" if trial.noise_gain is None else f"{trial.noise_gain:.1f}",
        f"{trial.seconds:.1f}",
        "best" if is_best else trial.failure or "",
    )
