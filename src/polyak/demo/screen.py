"""The demo's output as text: a line per record, the rows of the final table. Losses are cross-entropy."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import polyak
from polyak.demo.options import Options, Rate
from polyak.demo.summary import Summary
from polyak.demo.training import LossRecord, Record


def decay(options: Options, steps_per_epoch: int) -> str:
    """The decay, and the half-lives it gives the average: a warm-up reaches β long after a short run."""
    first, last = (
        polyak.Profile.from_decay(options.schedule, steps).half_life
        for steps in (steps_per_epoch, steps_per_epoch * options.epochs)
    )
    return (
        f"decay {options.decay}{' with warm-up' if options.warmup else ''}: "
        f"a half-life of {first:,.0f} steps after the first epoch, {last:,.0f} after the last"
    )


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
        ("wobble of the accuracy, late epochs", percent(raw.wobble), percent(ema.wobble)),
        ("last loss, test images", plain(raw.test_loss), plain(ema.test_loss)),
        ("last loss, training batches", plain(raw.train_loss), plain(ema.train_loss)),
    ]


def gain(summary: Summary, lr: Rate) -> list[str]:
    """The gain of the average, in a sentence or two."""
    raw, ema = summary.raw, summary.ema
    if raw.last is None or ema.last is None:
        return []
    points = 100 * (ema.last - raw.last)
    verb = "lost" if points >= 0 else "gained"
    return [
        f"Without averaging this run would have {verb} {abs(points):.2f} points: "
        f"{raw.last:.2%} accuracy instead of {ema.last:.2%}, "
        f"and a loss of {plain(raw.test_loss)} instead of {plain(ema.test_loss)}.",
        "With --lr cosine the falling learning rate does the averaging."
        if lr == "constant"
        else "Here the falling learning rate did the averaging; --lr constant leaves it to the average.",
    ]


def next_commands(options: Options, folder: Path) -> list[str]:
    """Commands to try on the files of a run."""
    score = ["polyak", "demo", "--data", options.data, "--framework", options.chosen]
    score += ["--root", str(options.root)] if options.root else []
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    evaluate = f"{join(score)} --score {{weights}}"
    return [
        "# what the average is made of",
        join(["polyak", "inspect", str(folder / "average.safetensors"), "--plot"]),
        "# the best half-life, found after training",
        join(["polyak", "sweep", str(folder / "snapshots"), "--mode", "min", "--eval", evaluate]),
        "# mistakes with averages in a script of yours",
        "polyak doctor your_train.py",
    ]


def cost(summary: Summary) -> str:
    """The time spent on the average."""
    spent = summary.seconds
    return (
        f"Updating the average took {summary.ema_share:.1%} of the training time "
        f"({spent.ema:.2f} s of {spent.train + spent.ema:.2f} s)."
    )


def counted(n: int, noun: str) -> str:
    """A number and its noun: 1 epoch, 3 epochs."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "-" if value is None else f"{value:.2%}"


def plain(value: float | None) -> str:
    """A loss to four digits, or a dash."""
    return "-" if value is None else f"{value:.4f}"
