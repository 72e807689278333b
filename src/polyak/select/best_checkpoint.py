"""Keeping the best average of a run: what was decided, why, and a file that cannot contradict it.

A save is three steps: the average is written whole under a name of its own, the decision is appended to
the log together with the checksum of that file, and the file is renamed into place. A kill between any
two leaves a file that the log knows by its checksum, and the next to look finishes the rename.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, SupportsFloat

from polyak._files.layout import SUMS
from polyak._foreign.open_any import open_weights
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import Profile
from polyak.schedules.decay import check_whole
from polyak.select.golden_section import Mode, check_min_gain, check_mode, gain

_FORGOTTEN = 0.01  # of the weight may rest on the parameters averaging began with


class Profiled(Protocol):
    """One average of an EMA."""

    @property
    def profile(self) -> Profile: ...


class Saved(Protocol):
    """What is needed of an EMA, of whatever framework."""

    run: str

    @property
    def step(self) -> int: ...
    @property
    def tracks(self) -> Mapping[str, Profiled]: ...
    def save(self, path: str | os.PathLike[str], track: str | None = None) -> None: ...


@dataclass(frozen=True)
class Decision:
    """One line of the log.

    Args:
        run: the training run.
        step: its training steps then.
        track: which average was evaluated.
        metric: of that average; None when it was not finite.
        best: the metric to beat; None when there was none.
        decision: "save" or "keep" the file there is.
        reason: in words.
        file: for "save", what tells the file from any other.
    """

    run: str
    step: int
    track: str
    metric: float | None
    best: float | None
    decision: Literal["save", "keep"]
    reason: str
    file: str | None = None


class BestCheckpoint:
    """The average with the best metric so far, in one file; and beside it, in JSON lines, every decision.

    A new object on the same path goes on with the record it finds, after a kill at any moment too. Where
    several processes train together, call it in one of them.

    Args:
        path: the ``.safetensors`` file; the log is ``path + ".jsonl"``.
        mode: "max" if a larger metric is better, or "min".
        min_gain: a new best must be better by more than this.
        after: save from this training step on; by default once less than 1 % of the average's weight
            rests on the parameters it began with, whose metric says little of the training.

    Raises:
        ConfigError: an argument is outside its rule.

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
            check_whole("after", after, 0)
        self.path, self.min_gain, self.after = Path(path), min_gain, after
        self.mode: Mode = mode
        self._log = Path(f"{self.path}.jsonl")
        self._coming = Path(f"{self.path}.new")
        self._known = False
        self._record: Decision | None = None

    @property
    def record(self) -> Decision | None:
        """The decision that the file came from; None as long as there is no file.

        Raises:
            CheckpointError: the log or the file is damaged, or the log does not know the file.
        """
        if not self._known:
            self._record, self._known = self._recovered(), True
        return self._record

    @property
    def metric(self) -> float | None:
        """The best metric: that of the average in the file."""
        return None if self.record is None else self.record.metric

    @property
    def decisions(self) -> list[Decision]:
        """The log, oldest first; a last line that a kill tore is not there.

        Raises:
            CheckpointError: another line is damaged.
        """
        if not self._log.exists():
            return []
        lines = self._bytes().split(b"\n")[:-1]
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)]

    def consider(self, ema: Saved, metric: SupportsFloat, track: str | None = None) -> bool:
        """Save the average if it is the best so far.

        Args:
            ema: the average, with the raw weights live.
            metric: what evaluating it gave; one that is not finite never wins.
            track: which of its averages was evaluated; by default the first.

        Returns:
            Whether it was saved.

        Raises:
            ConfigError: the metric is no number, or there is no such track.
            CheckpointError: a file cannot be written, is damaged, or is the best of another run.
        """
        name = next(iter(ema.tracks)) if track is None else track
        if name not in ema.tracks:
            raise ConfigError(f"track={name!r} is not one of {', '.join(map(repr, ema.tracks))}.")
        value = _number(metric)
        self._refuse_another(ema.run)
        best, known = self.metric, value if math.isfinite(value) else None
        against = self._against(value, ema.step, ema.tracks[name].profile)
        if against is not None:
            self._append(Decision(ema.run, ema.step, name, known, best, "keep", against))
            return False
        why = "the first" if best is None else f"{value} beats {best}"
        self._begin_log()
        ema.save(self._coming, name)
        decision = Decision(ema.run, ema.step, name, known, best, "save", why, _told(self._coming))
        self._append(decision)
        self._rename()
        self._record = decision
        return True

    def _against(self, value: float, step: int, profile: Profile) -> str | None:
        """What speaks against saving, if anything."""
        if not math.isfinite(value):
            return f"the metric is {value}"
        best = self.metric
        if best is not None and not gain(value, best, self.mode) > self.min_gain:
            return f"{value} does not beat {best}" + (
                f" by more than {self.min_gain}" if self.min_gain else ""
            )
        if self.after is not None:
            return f"step {step} comes before step {self.after}" if step < self.after else None
        if profile.initial_weight >= _FORGOTTEN:
            return f"{profile.initial_weight:.0%} of the weight rests on the initial parameters"
        return None

    def _refuse_another(self, run: str) -> None:
        if self.record is not None and self.record.run != run:
            raise CheckpointError(
                f"{self.path} is the best of run {self.record.run}, this EMA is of run {run}. To continue "
                "that run, load its state into the EMA first; otherwise give another path."
            )

    def _recovered(self) -> Decision | None:
        saves = [decision for decision in self.decisions if decision.decision == "save"]
        if self._coming.exists():
            if saves and saves[-1].file == _told(self._coming):
                self._rename()
            else:  # the kill came before the decision was written
                self._coming.unlink()
        if not self.path.exists():
            return None
        told = _told(self.path)
        for decision in reversed(saves):
            if decision.file == told:
                return decision
        raise CheckpointError(
            f"{self.path} is not a file that {self._log.name} knows, so its metric is not known. "
            "Move it away, or give another path."
        )

    def _rename(self) -> None:
        # Not forced to disk: after a power cut the two files are found as after a kill.
        try:
            self._coming.replace(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error}") from error

    def _begin_log(self) -> None:
        """Make the log before the file, so that no power cut leaves the file alone."""
        try:
            self._log.open("ab").close()
        except OSError as error:
            raise CheckpointError(f"{self._log} cannot be written: {error}") from error

    def _append(self, decision: Decision) -> None:
        """One line, on disk when this returns; what was torn off the end before it goes."""
        line = json.dumps(asdict(decision), allow_nan=False).encode() + b"\n"
        self._begin_log()
        whole = self._bytes().rfind(b"\n") + 1
        try:
            with self._log.open("r+b", buffering=0) as file:
                file.truncate(whole)
                file.seek(whole)
                file.write(line)
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):  # a decision that is not on disk was not made
                os.truncate(self._log, whole)
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
            raise CheckpointError(f"{self._log}, line {number}, is no decision: {error}") from error


def _number(metric: SupportsFloat) -> float:
    try:
        return float(metric)
    except (TypeError, ValueError, RuntimeError) as error:  # the last from a tensor of several elements
        raise ConfigError(f"metric={metric!r}: must be one number.") from error


def _told(path: Path) -> str:
    """What tells this file from any other: a digest of the checksums of its header and tensors."""
    with open_weights(path) as weights:
        return hashlib.sha256(weights.metadata.get(SUMS, "").encode()).hexdigest()[:16]
