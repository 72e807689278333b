"""`polyak sweep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import ascii_only, complain, progress, say, say_table, watched, width
from polyak.cli.options import MAX_ERROR, Better, Eval, Json, MaxError, Shell, Timeout
from polyak.errors import MissingExtraError
from polyak.report.curve import caption, drawing, picture
from polyak.schedules.metric import gain
from polyak.select.evaluate import EvalCommand, RawTrial, SweepRecord, Trial
from polyak.select.sweep import BEST, RECORD, Sweep
from polyak.select.sweep import sweep as run


def sweep(
    archive: Annotated[Path, typer.Argument(help="Folder of snapshots that polyak.Archive wrote.")],
    command: Eval,
    raw: Annotated[
        Path | None, typer.Option(help="The raw weights of that step in a file, to evaluate them too.")
    ] = None,
    mode: Better = "max",
    at: Annotated[
        int | None, typer.Option(help="Training step of the averages.", show_default="the last")
    ] = None,
    points: Annotated[int, typer.Option(help="Half-lives on the logarithmic grid.")] = 7,
    refine: Annotated[int, typer.Option(help="Golden-section steps after the grid.")] = 6,
    max_error: MaxError = MAX_ERROR,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to.", show_default="ARCHIVE/sweep")
    ] = None,
    shell: Shell = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Find the best half-life by evaluating averages.

    They are synthesised from an archive. Run again, the command resumes where it stopped.
    """
    folder, evaluate = out or archive / "sweep", EvalCommand(command, shell, timeout)
    options = Sweep(archive, evaluate, folder, mode, at, points, refine, max_error, raw)
    try:
        with progress("half-lives", "count") as tick:

            def report(trial: Trial | RawTrial, done: int, total: int) -> None:
                tick(done, total)
                if not (watched() or as_json):
                    say(f"{done}/{total} {_line(trial)}")

            record = run(options, report)
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
    raw, best = record.raw, record.best
    headings = ("half-life, steps", "metric", "error", "noise gain", "seconds", "")
    first = (
        []
        if raw is None
        else [("raw weights", _metric(raw), "", "", f"{raw.seconds:.1f}", raw.failure or "")]
    )
    say_table(headings, [*first, *(_row(trial, trial is best) for trial in record.trials)])
    if best is None or best.metric is None:
        return
    say(*drawing(record, min(width(), 100), ascii_only=ascii_only()).splitlines(), caption(best))
    if raw is not None and raw.metric is not None:
        better = gain(best.metric, raw.metric, record.mode)
        say(f"raw weights: {raw.metric:.6g}; the best average gains {better:+.4g}")
    say(f"wrote {', '.join(name for name in _files(record, folder, drawn).values() if name is not None)}")


def _line(trial: Trial | RawTrial) -> str:
    name = "raw weights" if isinstance(trial, RawTrial) else f"half-life {trial.half_life:,.4g}"
    return f"{name}: {_metric(trial)}"


def _metric(trial: Trial | RawTrial) -> str:
    return "failed" if trial.metric is None else f"{trial.metric:.6g}"


def _row(trial: Trial, is_best: bool) -> tuple[str, ...]:
    return (
        f"{trial.half_life:,.4g}",
        _metric(trial),
        "" if trial.error is None else f"{trial.error:.2%}",
        "" if trial.noise_gain is None else f"{trial.noise_gain:.1f}",
        f"{trial.seconds:.1f}",
        "best" if is_best else trial.failure or "",
    )
