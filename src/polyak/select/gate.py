"""Whether a new average is better than the best so far, for release pipelines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from polyak._files.write import atomic
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules.decay import check_integer
from polyak.schedules.metric import Mode, check_min_gain, check_mode, gain
from polyak.select.evaluate import EvalCommand

# The 95 % quantile of Student's t with 1, 2, … 30 degrees of freedom; beyond, the last is on the safe side.
_T95 = (
    *(6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432, 1.8946, 1.8595, 1.8331, 1.8125),
    *(1.7959, 1.7823, 1.7709, 1.7613, 1.7531, 1.7459, 1.7396, 1.7341, 1.7291, 1.7247),
    *(1.7207, 1.7171, 1.7139, 1.7109, 1.7081, 1.7056, 1.7033, 1.7011, 1.6991, 1.6973),
)


@dataclass(frozen=True)
class Gate:
    """A file, those it has to beat, and how they are compared."""

    new: Path  # the file to judge
    best: Sequence[Path]  # the files to beat, each of them
    command: EvalCommand  # gives the metric of a file of weights
    mode: Mode = "max"  # "max" if a larger metric is better, or "min"
    min_gain: float = 0.0  # pass if better by at least this; 0 requires strictly better
    # leave out files to beat that do not exist yet, provided ``new`` can be evaluated
    allow_missing: bool = False
    promote: bool = False  # copy ``new`` over the file to beat when it passes
    repeats: int = 1  # evaluations of each file; with several, the 95 % ``lower_bound`` of the gain decides

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_min_gain(self.min_gain)
        check_integer("repeats", self.repeats, 1)
        if not self.new.exists():
            raise ConfigError(f"{self.new} does not exist, so there is nothing to evaluate.")
        for best in self.best:
            if not best.exists() and not self.allow_missing:
                raise ConfigError(
                    f"{best} does not exist; for a first release give --allow-missing (allow_missing=True)."
                )
            if best.exists() and os.path.samefile(self.new, best):
                raise ConfigError(f"{self.new} and {best} are one file, so there is nothing to compare.")
        if self.promote and len(self.best) != 1:
            raise ConfigError(f"promote replaces one file, and there are {len(self.best)} to beat.")
        if self.promote and (self.new.is_dir() or self.best[0].is_dir()):
            raise ConfigError(f"{self.new} or {self.best[0]} is a folder: only a single file is promoted.")


@dataclass(frozen=True)
class Comparison:
    """The new file beside one that it has to beat."""

    file: str  # the other file
    metric: float  # of it; the mean of all evaluations
    gain: float  # the mean improvement; negative if the new file is worse
    lower_bound: float  # of the gain, to 95 %; the gain itself with a single evaluation
    passed: bool  # whether that is enough


@dataclass(frozen=True)
class Verdict:
    """The result of a gate."""

    new: float  # the metric of the new file; the mean of all evaluations
    # the comparisons, in the order of the files; those that did not exist are left out
    against: tuple[Comparison, ...]
    promoted: bool = False  # whether the new file replaced the best

    @property
    def passed(self) -> bool:
        """Whether the new file beats every other."""
        return all(one.passed for one in self.against)

    @property
    def closest(self) -> Comparison | None:
        """The comparison with the smallest gain that is certain; None if there was nothing to beat."""
        return min(self.against, key=lambda one: one.lower_bound, default=None)


def judge(gate: Gate) -> Verdict:
    """Evaluate all files, in turn as often as ``repeats`` says, and compare.

    Returns:
        The verdict.
    """
    others = [best for best in gate.best if best.exists()]
    rounds = [[_metric(path, gate.command, i) for path in (gate.new, *others)] for i in range(gate.repeats)]
    new, *metrics = zip(*rounds, strict=True)
    against = tuple(map(_compared, repeat(gate), others, repeat(new), metrics))
    verdict = Verdict(fmean(new), against)
    if not (verdict.passed and gate.promote):
        return verdict
    with atomic(gate.best[0]) as temporary:
        shutil.copyfile(gate.new, temporary)
    return Verdict(verdict.new, against, promoted=True)


def metrics_of(gate: Gate, verdict: Verdict) -> dict[Path, float]:
    """The metric of each file as it is after the gate: a promoted one is in the place of the best."""
    others = {Path(one.file): verdict.new if verdict.promoted else one.metric for one in verdict.against}
    return {gate.new: verdict.new, **others}


def _compared(gate: Gate, path: Path, new: Sequence[float], best: Sequence[float]) -> Comparison:
    gains = [gain(a, b, gate.mode) for a, b in zip(new, best, strict=True)]
    least = lower_bound(gains)
    return Comparison(str(path), fmean(best), fmean(gains), least, least > 0 and least >= gate.min_gain)


def lower_bound(gains: Sequence[float]) -> float:
    """The lower end of a one-sided 95 % interval for the mean of paired differences.

    ``mean - t₀.₉₅(n-1)·s/√n``, s the standard deviation. For files that are equally good and normal noise it
    is above 0 in one comparison of twenty.

    Args:
        gains: improvements, each from one evaluation of either file.

    Returns:
        An improvement; of a single one itself.

    Examples:
        >>> lower_bound([0.02]), round(lower_bound([0.01, 0.02, 0.03]), 5)
        (0.02, 0.00314)

    Source: Student 1908, "The probable error of a mean".
    """
    n = len(gains)
    if n == 1:
        return gains[0]
    return fmean(gains) - _T95[min(n - 1, len(_T95)) - 1] * stdev(gains) / sqrt(n)


def _metric(path: Path, command: EvalCommand, repeat: int) -> float:
    measured = command.measure(path, repeat)
    if measured.metric is None:
        raise CheckpointError(f"{path} could not be evaluated: {measured.failure}.")
    return measured.metric
