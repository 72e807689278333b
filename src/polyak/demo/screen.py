"""The demo's output as text: a line per record, the rows of the final table. Losses are cross-entropy."""

from __future__ import annotations

from polyak.demo.summary import Summary
from polyak.demo.training import LossRecord, Record


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


def rows(summary: Summary) -> list[tuple[str, str, str]]:
    """A name, the figure of the raw weights, the figure of their average."""
    raw, ema = summary.raw, summary.ema
    return [
        ("best accuracy", percent(raw.best), percent(ema.best)),
        ("last accuracy", percent(raw.last), percent(ema.last)),
        ("mean jump from epoch to epoch", percent(raw.jump), percent(ema.jump)),
        ("last loss, test images", plain(raw.test_loss), plain(ema.test_loss)),
        ("last loss, training batches", plain(raw.train_loss), plain(ema.train_loss)),
    ]


def times(summary: Summary) -> list[str]:
    """Where the time went, the average's own cost first."""
    spent = summary.seconds
    return [
        f"updating the average took {summary.ema_share:.1%} of the training time "
        f"({spent.ema:.2f} s of {spent.train + spent.ema:.2f} s).",
        f"Only to show both curves: {spent.watch:.2f} s for its loss on the training batches, "
        f"{spent.test:.2f} s and {spent.test_ema:.2f} s for the test images, raw and average.",
    ]


def counted(n: int, noun: str) -> str:
    """A number and its noun: 1 epoch, 3 epochs."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{value:.2%}"


def plain(value: float | None) -> str:
    """A loss to four digits, or a dash."""
    return "-" if value is None else f"{value:.4f}"
