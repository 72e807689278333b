"""Keeping the best average of a run, and a log of every decision that always agrees with the file.

A save has three steps: the average is written under a temporary name, the decision is appended to the log
with a digest of that file, and the file is renamed into place. After a kill between two of them the log
identifies the file by its digest, and the next process finishes the rename.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TypeAlias

from polyak._core.initial_weight import CURES, EARLY, most_initial
from polyak._core.persistence import AnyEMA, decided_by_first
from polyak._core.track import Track
from polyak._files.layout import SUMS
from polyak._files.write import rename_over, to_disk
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules.decay import check_integer
from polyak.schedules.metric import Mode, as_number, check_min_gain, check_mode, gain

_INITIAL = " of the weight rests on the initial parameters"
_FORGOTTEN = 0.01  # largest weight of the initial parameters at which an average is saved


@dataclass(frozen=True)
class Decision:
    """One line of the log.

    Args:
        run: the training run.
        step: number of training steps at the time.
        track: the average that was evaluated.
        metric: of that average; None when it was not finite.
        best: the metric to beat; None when there was none.
        decision: "save", or "keep" the existing file.
        reason: in words.
        file: for "save", the digest of the file.
    """

    run: str
    step: int
    track: str
    metric: float | None
    best: float | None
    decision: Literal["save", "keep"]
    reason: str
    file: str | None = None


# The decision and the record, as ``asdict`` makes them.
Told: TypeAlias = tuple[dict[str, Any], dict[str, Any] | None]


class BestCheckpoint:
    """The average with the best metric so far, in one file; next to it, in JSON lines, every decision.

    A new object on the same path resumes the record, also after a kill at any moment. If several processes
    train together, use it in one of them; of a sharded average in each, where the metric of rank 0 decides
    and rank 0 writes the files. The others know ``record`` and ``metric`` after the first ``consider``.

    Args:
        path: the ``.safetensors`` file; the log is ``path + ".jsonl"``.
        mode: "max" if a larger metric is better, or "min".
        min_gain: a new best must be better by more than this.
        after: save from this training step on; by default as soon as the initial parameters, whose metric
            says little about the training, have less than 1 % of the weight.

    Raises:
        ConfigError: an argument is invalid.

    Examples:
        >>> import tempfile, torch, polyak
        >>> ema = polyak.EMA(torch.nn.Linear(2, 1), polyak.Warmup(0.999))
        >>> best = BestCheckpoint(tempfile.mkdtemp() + "/best.safetensors", mode="max")
        >>> for accuracy in (0.91, 0.93, 0.92):
        ...     ema.update(steps=100)
        ...     print(best.consider(ema, accuracy))
        True
        True
        False
        >>> best.metric, best.decisions[-1].reason
        (0.93, '0.92 does not beat 0.93')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Mode = "max",
        min_gain: float = 0.0,
        after: int | None = None,
    ) -> None:
        check_mode(mode)
        check_min_gain(min_gain)
        if after is not None:
            check_integer("after", after, 0)
        self.path, self.min_gain, self.after = Path(path), min_gain, after
        self.mode: Mode = mode
        self._log = Path(f"{self.path}.jsonl")
        self._temporary = Path(f"{self.path}.new")
        self._known = self._said = False
        self._record: Decision | None = None

    @property
    def record(self) -> Decision | None:
        """The decision that saved the file; None as long as there is no file.

        Raises:
            CheckpointError: the log or the file is damaged, or the file is not in the log.
        """
        if not self._known:
            self._record, self._known = self._recovered(), True
        return self._record

    @property
    def metric(self) -> float | None:
        """The metric of the average in the file."""
        return None if self.record is None else self.record.metric

    @property
    def decisions(self) -> list[Decision]:
        """The log, oldest first, without a last line that is incomplete after a kill.

        Raises:
            CheckpointError: another line is damaged.
        """
        if not self._log.exists():
            return []
        lines = self._bytes().split(b"\n")[:-1]
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)]

    def consider(self, ema: AnyEMA, metric: SupportsFloat, track: str | None = None) -> bool:
        """Save the average if it is the best so far.

        Args:
            ema: the EMA; the model must hold the raw weights.
            metric: of the average; one that is not finite never wins.
            track: the average that was evaluated; by default ``ema.following``.

        Returns:
            Whether it was saved.

        Raises:
            ConfigError: the metric is not a number, or there is no such track.
            CheckpointError: a file cannot be written, is damaged, or is the best of another run.
        """
        name = ema.following if track is None else track

        def check() -> None:
            if name not in ema.tracks:
                raise ConfigError(f"track={name!r} is not one of {', '.join(map(repr, ema.tracks))}.")
            as_number("metric", metric)

        decide = partial(self._decide, ema, metric, name)
        decision = self._told(decided_by_first(ema, decide, check))
        if decision.decision == "keep":
            if decision.best is None and decision.reason.endswith(_INITIAL):
                self._say_why(ema, name, decision.reason)
            return False
        ema.save(self._temporary, name)
        self._told(decided_by_first(ema, partial(self._finish, decision)))
        return True

    def _decide(self, ema: AnyEMA, metric: SupportsFloat, name: str) -> Told:
        """The decision, before anything is saved, and the record."""
        value = as_number("metric", metric)
        self._check_run(ema.run)
        best, finite = self.metric, value if math.isfinite(value) else None
        objection = self._objection(value, ema.step, ema.tracks[name])
        if objection is None:
            why = "the first" if best is None else f"{value} beats {best}"
            self._begin_log()
            return self._tell(Decision(ema.run, ema.step, name, finite, best, "save", why))
        kept = Decision(ema.run, ema.step, name, finite, best, "keep", objection)
        self._append(kept)
        return self._tell(kept)

    def _finish(self, decision: Decision) -> Told:
        """Enter the decision to save into the log, and put the new file in the old one's place."""
        decision = replace(decision, file=_digest(self._temporary))
        self._append(decision)
        self._rename()
        self._record = decision
        return self._tell(decision)

    def _tell(self, decision: Decision) -> Told:
        return asdict(decision), None if self._record is None else asdict(self._record)

    def _told(self, values: Told) -> Decision:
        """What rank 0 decided; the other ranks of a sharded average know its record from there."""
        decision, record = values
        self._record, self._known = None if record is None else Decision(**record), True
        return Decision(**decision)

    def _objection(self, value: float, step: int, track: Track[Any]) -> str | None:
        """The reason not to save, if there is one."""
        if not math.isfinite(value):
            return f"the metric is {value}"
        best = self.metric
        if best is not None and not gain(value, best, self.mode) > self.min_gain:
            return f"{value} does not beat {best}" + (
                f" by more than {self.min_gain}" if self.min_gain else ""
            )
        if self.after is not None:
            return f"step {step} comes before step {self.after}" if step < self.after else None
        _, weight = most_initial(track)
        if weight >= _FORGOTTEN:
            return f"{weight:.0%}{_INITIAL}"
        return None

    def _say_why(self, ema: AnyEMA, track: str, objection: str) -> None:
        """Warn once that there is no file yet, but not in the first steps of a run."""
        if self._said or ema.tracks[track].steps_averaged < EARLY:
            return
        self._said = True
        warnings.warn(
            f"{self.path}: nothing is saved yet at step {ema.step:,}, because {objection}, by "
            f"{ema.tracks[track].decay}. Below {_FORGOTTEN:.0%}, or from after=… on, it is. {CURES}.",
            stacklevel=3,
        )

    def _check_run(self, run: str) -> None:
        if self.record is not None and self.record.run != run:
            raise CheckpointError(
                f"{self.path} is the best of run {self.record.run}, this EMA is of run {run}. To continue "
                "that run, load its state into the EMA first; otherwise give another path."
            )

    def _recovered(self) -> Decision | None:
        saves = [decision for decision in self.decisions if decision.decision == "save"]
        if self._temporary.exists():
            if saves and saves[-1].file == _digest(self._temporary):
                self._rename()
            else:  # the kill came before the decision was written
                self._temporary.unlink()
        if not self.path.exists():
            return None
        digest = _digest(self.path)
        for decision in reversed(saves):
            if decision.file == digest:
                return decision
        raise CheckpointError(
            f"{self.path} is not a file that {self._log.name} lists, so its metric is not known. "
            "Move it away, or give another path."
        )

    def _rename(self) -> None:
        # No fsync: after a power cut the two files are found as after a kill.
        try:
            rename_over(self._temporary, self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error}") from error

    def _begin_log(self) -> None:
        """Create the log before the file, so that no power cut leaves the file without one."""
        try:
            self._log.open("ab").close()
        except OSError as error:
            raise CheckpointError(f"{self._log} cannot be written: {error}") from error

    def _append(self, decision: Decision) -> None:
        """Append a line, on disk when this returns, in place of an incomplete last one."""
        line = json.dumps(asdict(decision), allow_nan=False).encode() + b"\n"
        self._begin_log()
        end = self._bytes().rfind(b"\n") + 1
        try:
            with self._log.open("r+b", buffering=0) as file:
                file.truncate(end)
                file.seek(end)
                file.write(line)
                to_disk(file.fileno())
        except OSError as error:
            with suppress(OSError):  # a decision that is not on disk was not made
                os.truncate(self._log, end)
            raise CheckpointError(f"{self._log} cannot be written: {error}") from error

    def _bytes(self) -> bytes:
        try:
            return self._log.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self._log} cannot be read: {error}") from error

    def _parsed(self, number: int, line: bytes) -> Decision:
        try:
            return Decision(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self._log}, line {number}, is not a decision: {error}") from error


def _digest(path: Path) -> str:
    """A digest of the checksums of the file's header and tensors."""
    with open_weights(path) as weights:
        return hashlib.sha256(weights.metadata.get(SUMS, "").encode()).hexdigest()[:16]
