"""Whether a new average is better than the best so far, for release pipelines."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from polyak._files.write import atomic
from polyak.errors import CheckpointError, ConfigError
from polyak.select.evaluate import EvalCommand
from polyak.select.metric import Mode, check_min_gain, check_mode, gain


@dataclass(frozen=True)
class Gate:
    """Two files and how they are compared.

    Args:
        new: the file to judge.
        best: the file to beat.
        command: gives the metric of a file of weights.
        mode: "max" if a larger metric is better, or "min".
        min_gain: pass if better by at least this; 0 requires strictly better.
        allow_missing: let ``new`` pass if ``best`` does not exist yet, provided ``new`` can be evaluated.
        promote: copy ``new`` over ``best`` when it passes.

    Raises:
        ConfigError: an argument is outside its rule.
    """

    new: Path
    best: Path
    command: EvalCommand
    mode: Mode = "max"
    min_gain: float = 0.0
    allow_missing: bool = False
    promote: bool = False

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_min_gain(self.min_gain)
        if not self.new.exists():
            raise ConfigError(f"{self.new} does not exist, so there is nothing to evaluate.")
        if not self.best.exists() and not self.allow_missing:
            raise ConfigError(f"{self.best} does not exist; for a first release allow it to be missing.")
        if self.best.exists() and os.path.samefile(self.new, self.best):
            raise ConfigError(f"{self.new} and {self.best} are one file, so there is nothing to compare.")
        if self.promote and (self.new.is_dir() or self.best.is_dir()):
            raise ConfigError(f"{self.new} or {self.best} is a folder: only a single file is promoted.")


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Args:
        new: the metric of the new file.
        best: that of the file to beat; None if there was none.
        gain: the improvement, negative if the new file is worse; None without ``best``.
        passed: whether that is enough.
        promoted: whether the new file replaced the best.
    """

    new: float
    best: float | None
    gain: float | None
    passed: bool
    promoted: bool


def judge(gate: Gate) -> Verdict:
    """Evaluate both files and compare.

    Returns:
        The verdict.

    Raises:
        CheckpointError: a file could not be evaluated or promoted.
    """
    new = _metric(gate.new, gate.command)
    best = _metric(gate.best, gate.command) if gate.best.exists() else None
    difference = None if best is None else gain(new, best, gate.mode)
    passed = difference is None or (difference > 0 and difference >= gate.min_gain)
    if passed and gate.promote:
        with atomic(gate.best) as temporary:
            shutil.copyfile(gate.new, temporary)
    return Verdict(new, best, difference, passed, passed and gate.promote)


def _metric(path: Path, command: EvalCommand) -> float:
    measured = command.measure(path)
    if measured.metric is None:
        raise CheckpointError(f"{path} could not be evaluated: {measured.failure}.")
    return measured.metric
