"""`polyak sweep`."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as RemainingColumn
from rich.table import Table
from rich.text import Text

from polyak.cli.printing import complain, printable, say
from polyak.errors import MissingExtraError
from polyak.report.curve import caption, drawing, picture
from polyak.select.evaluate import EvalCommand, SweepRecord
from polyak.select.sweep import BEST, RECORD, Sweep
from polyak.select.sweep import sweep as run


def sweep(
    archive: Annotated[Path, typer.Argument(help="Folder of snapshots that polyak.Archive wrote.")],
    command: Annotated[
        str, typer.Option("--eval", help="Its last line of stdout is the metric of {weights}.")
    ],
    mode: Annotated[str, typer.Option(help="max if a larger metric is better, or min.")] = "max",
    at: Annotated[
        int | None, typer.Option(help="Training step to stand at.", show_default="the last")
    ] = None,
    points: Annotated[int, typer.Option(help="Half-lives on the logarithmic grid.")] = 7,
    refine: Annotated[int, typer.Option(help="Golden sections around the best after it.")] = 6,
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

    They are made from an archive. Repeated, the command goes on where it stopped.
    """
    folder, chosen = out or archive / "sweep", _mode(mode)
    asked = Sweep(
        archive, EvalCommand(command, shell, timeout), folder, chosen, at, points, refine, max_error
    )
    try:
        with _progress() as watch:
            record = run(asked, watch)
    except KeyboardInterrupt:
        complain(f"interrupted; the same command goes on from {folder / RECORD}")
        raise typer.Exit(130) from None
    drawn = _drawn(record, folder / "sweep.png")
    if as_json:
        print(json.dumps(record.to_json() | _files(record, folder, drawn)))
    else:
        _show(record, folder, drawn)
    if record.best is None:
        complain("every evaluation failed.")
        raise typer.Exit(1)


def _mode(mode: str) -> Any:
    return mode  # any text; the options object refuses what is no mode


def _drawn(record: SweepRecord, path: Path) -> bool:
    """Whether the picture was drawn; matplotlib is an extra, and the sweep is done without it too."""
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
    console = Console(highlight=False)
    table = Table("half-life, steps", "metric", "error", "noise gain", "seconds", "")
    for trial in record.trials:
        error = "" if trial.error is None else f"{trial.error:.2%}"
        gain = "" if trial.noise_gain is None else f"{trial.noise_gain:.1f}"
        metric = "failed" if trial.metric is None else f"{trial.metric:.6g}"
        note = "best" if trial is record.best else trial.failure or ""
        table.add_row(
            f"{trial.half_life:,.4g}", metric, error, gain, f"{trial.seconds:.1f}", Text(printable(note))
        )
    console.print(table)
    if record.best is None:
        return
    plain = not console.encoding.startswith("utf")
    console.print(drawing(record, min(console.width, 100), ascii_only=plain), markup=False, soft_wrap=True)
    files = [name for name in _files(record, folder, drawn).values() if name is not None]
    say(caption(record.best), f"wrote {', '.join(files)}")


class _Rate(ProgressColumn):
    """Evaluations per minute."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{60 * task.speed:.3g}/min")


@contextmanager
def _progress() -> Generator[Callable[[int, int], None]]:
    """A bar on stderr where a person looks, moved by calling what is yielded."""
    console = Console(stderr=True)
    columns = TextColumn("half-lives"), BarColumn(), MofNCompleteColumn(), _Rate(), RemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def move(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield move
