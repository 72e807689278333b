"""The summary of a run: best and last accuracy, the wobble of each curve, the cost of the average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from polyak.demo.training import EpochRecord, LossRecord, Record, Seconds


@dataclass(frozen=True)
class Curve:
    """One accuracy curve: best and last value in 0 … 1, and its wobble; the losses it ended with."""

    best: float | None
    last: float | None
    wobble: float | None
    test_loss: float | None
    train_loss: float | None


@dataclass(frozen=True)
class Summary:
    """Both curves, and the time spent. A value that needs more epochs than were finished is None."""

    epochs: int
    raw: Curve
    ema: Curve
    ema_share: float
    seconds: Seconds


def summarize(records: Sequence[Record]) -> Summary:
    """Add up a run from its records; at least one."""
    epochs = [record for record in records if isinstance(record, EpochRecord)]
    losses = [record for record in records if isinstance(record, LossRecord)]
    last_loss = losses[-1]
    raw = curve([e.accuracy for e in epochs], [e.test_loss for e in epochs], last_loss.loss)
    ema = curve([e.ema_accuracy for e in epochs], [e.ema_test_loss for e in epochs], last_loss.ema_loss)
    seconds = records[-1].seconds
    return Summary(len(epochs), raw, ema, seconds.ema_share, seconds)


def curve(accuracies: Sequence[float], test_losses: Sequence[float], train_loss: float) -> Curve:
    """The figures of one curve."""
    return Curve(
        best=max(accuracies, default=None),
        last=accuracies[-1] if accuracies else None,
        wobble=wobble(accuracies),
        test_loss=test_losses[-1] if test_losses else None,
        train_loss=train_loss,
    )


def wobble(values: Sequence[float]) -> float | None:
    """Mean of |aₑ - (aₑ₋₁ + aₑ₊₁)/2| in the second half, free of the rise; None for fewer than 4 epochs."""
    late = values[(len(values) - 1) // 2 :]
    apart = [abs(b - (a + c) / 2) for a, b, c in zip(late, late[1:], late[2:], strict=False)]
    return fmean(apart) if apart else None
