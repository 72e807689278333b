"""What the demo shows: a progress bar, a line per record, a table at the end. Losses are cross-entropy."""

from __future__ import annotations

from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from polyak.demo.summary import Summary
from polyak.demo.training import LossRecord, Record

Number: TypeAlias = float | None


def progress(console: Console) -> Progress:
    """A bar over the steps of the run, with the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def line(record: Record) -> str:
    """One record as one line of text."""
    if isinstance(record, LossRecord):
        return (
            f"epoch {record.epoch:2}  step {record.step:6}  "
            f"loss {record.loss:.4f}  EMA loss {record.ema_loss:.4f}   (training batches)"
        )
    return (
        f"epoch {record.epoch:2}  accuracy {record.accuracy:.2%}  EMA accuracy {record.ema_accuracy:.2%}  "
        f"loss {record.test_loss:.4f}  EMA loss {record.ema_test_loss:.4f}   (test images)"
    )


def table(summary: Summary) -> Table:
    """Raw weights against their average."""
    shown = Table(title=f"after {counted(summary.epochs, 'epoch')}", title_justify="left")
    shown.add_column()
    shown.add_column("raw", justify="right")
    shown.add_column("average", justify="right")
    raw, ema = summary.raw, summary.ema
    shown.add_row("best accuracy", percent(raw.best), percent(ema.best))
    shown.add_row("last accuracy", percent(raw.last), percent(ema.last))
    shown.add_row("mean jump from epoch to epoch", percent(raw.jump), percent(ema.jump))
    shown.add_row("last loss, test images", plain(raw.test_loss), plain(ema.test_loss))
    shown.add_row("last loss, training batches", plain(raw.train_loss), plain(ema.train_loss))
    return shown


def times(summary: Summary) -> str:
    """Where the time went, the average's own cost first."""
    spent = summary.seconds
    return (
        f"updating the average took {summary.ema_share:.1%} of the training time "
        f"({spent.ema:.2f} s of {spent.train + spent.ema:.2f} s).\n"
        f"Only to show both curves: {spent.watch:.2f} s for its loss on the training batches, "
        f"{spent.test:.2f} s and {spent.test_ema:.2f} s for the test images, raw and average."
    )


def counted(n: int, noun: str) -> str:
    """A number and its noun: 1 epoch, 3 epochs."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def percent(value: Number) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{value:.2%}"


def plain(value: Number) -> str:
    """A loss to four digits, or a dash."""
    return "-" if value is None else f"{value:.4f}"
