"""Evaluating weights with a command of the user's, and the record of the metrics.

The command is any program: it is started with the path of the weights in place of ``{weights}``, and the
last line of its stdout must be the metric. If it crashes, hangs or prints something else, the record holds
the reason; no exception is raised.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from polyak._files.locks import Lock, lock_folder
from polyak._files.write import atomic
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules.golden_section import best_of
from polyak.schedules.metric import Mode

PLACE = "{weights}"
_REPEAT = "{repeat}"
_FORMAT = 1
_TAIL = 1 << 16  # bytes of the command's output that are read
_SHOWN = 200  # characters of a line in a reason
_SAME = 1e-6  # relative difference of a half-life as computed by different machines


class Measured(NamedTuple):
    """The metric or the reason why there is none, and the seconds of the evaluation."""

    metric: float | None
    failure: str | None
    seconds: float


@dataclass(frozen=True)
class EvalCommand:
    """A command line that evaluates weights.

    Args:
        line: with ``{weights}`` in place of the path, and ``{repeat}``, if wanted, in place of the number of
            the repeat: a seed. It is split as a shell would split it and started without a shell.
        shell: run the line in the shell instead, for pipes and variables; the path is quoted.
        timeout: seconds after which it and its children are killed; None for never.

    Examples:
        >>> import sys
        >>> evaluate = f"{shlex.quote(sys.executable)} -c 'print(0.93)' {{weights}}"
        >>> EvalCommand(evaluate).measure(Path("average.safetensors")).metric
        0.93
    """

    line: str
    shell: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        if PLACE not in self.line:
            raise ConfigError(
                f"the command {self.line!r} has no {PLACE}: put it where the path belongs, as in "
                f"'python evaluate.py {PLACE}'."
            )
        if self.timeout is not None and not self.timeout > 0:
            raise ConfigError(f"timeout={self.timeout}: must be a number of seconds above 0.")
        try:
            _split(self.line)
        except ValueError as error:
            raise ConfigError(f"the command {self.line!r} cannot be split: {error}.") from error

    def measure(self, weights: Path, repeat: int = 0) -> Measured:
        """Evaluate a file; the command's stderr is used only to explain a failure."""
        begun = time.monotonic()
        with TemporaryFile() as out, TemporaryFile() as err:
            failure = self._run(self._arguments(weights, repeat), out, err)
            metric = None
            if failure is None:
                metric, failure = _metric(_tail(out))
        return Measured(metric, failure, time.monotonic() - begun)

    def _run(self, arguments: list[str] | str, out: IO[bytes], err: IO[bytes]) -> str | None:
        """Run the command; the reason if it failed."""
        # Files instead of pipes: a child that outlives the command would hold a pipe open forever.
        # A session of its own, so that a timeout or Ctrl-C also ends the command's children.
        try:
            process = subprocess.Popen(
                arguments,
                shell=self.shell,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return f"it cannot be started: {error}"
        try:
            status = process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            return f"it was killed after {self.timeout:g} seconds"
        finally:
            _end(process)
        return _crash(status, _tail(err)) if status else None

    def _arguments(self, weights: Path, repeat: int) -> list[str] | str:
        path, line = str(weights.absolute()), self.line.replace(_REPEAT, str(repeat))
        if self.shell:
            quoted = subprocess.list2cmdline([path]) if sys.platform == "win32" else shlex.quote(path)
            return line.replace(PLACE, quoted)
        return [part.replace(PLACE, path) for part in _split(line)]


@dataclass(frozen=True)
class Trial:
    """One half-life evaluated."""

    half_life: float  # in training steps
    metric: float | None  # None if there is none
    failure: str | None = None  # the reason why there is no metric
    # expected, of the synthesised average, as a share of its distance from the raw weights
    error: float | None = None
    noise_gain: float | None = None  # of its coefficients
    seconds: float = 0.0  # duration of the command


@dataclass(frozen=True)
class RawTrial:
    """The raw weights evaluated; the fields are those of ``Trial``."""

    file: str
    metric: float | None
    failure: str | None = None
    seconds: float = 0.0


class SweepRecord:
    """The trials of one sweep, in a JSON file that is complete at any moment.

    Args:
        path: the file; trials already in it are resumed.
        run: the training run of the averages.
        at: their training step.
        command: the command that evaluates them.
        mode: which metric is better.
    """

    def __init__(self, path: Path, run: str, at: int, command: str, mode: Mode) -> None:
        self.path = path
        self.mode: Mode = mode
        self.trials: list[Trial] = []
        self.raw: RawTrial | None = None
        self._of: dict[str, Any] = {"run": run, "step": at, "command": command}
        if path.exists():
            self._resume()

    @property
    def best(self) -> Trial | None:
        """The trial with the best metric."""
        half_life = best_of({trial.half_life: trial.metric for trial in self.trials}, self.mode)
        return next((trial for trial in self.trials if trial.half_life == half_life), None)

    def measured(self, half_life: float) -> Trial | None:
        """The trial of a half-life, if it has a metric; a failed one is tried again."""
        for trial in self.trials:
            if trial.metric is not None and math.isclose(trial.half_life, half_life, rel_tol=_SAME):
                return trial
        return None

    def add(self, trial: Trial) -> None:
        """Add a trial or replace that of its half-life; it is on disk when this returns."""
        others = [t for t in self.trials if not math.isclose(t.half_life, trial.half_life, rel_tol=_SAME)]
        self.trials = sorted([*others, trial], key=lambda t: t.half_life)
        self._write()

    def add_raw(self, trial: RawTrial) -> None:
        """Set the trial of the raw weights; it is on disk when this returns."""
        self.raw = trial
        self._write()

    def _write(self) -> None:
        with atomic(self.path) as temporary:
            temporary.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        best = self.best
        return {
            "format": _FORMAT,
            **self._of,
            "mode": self.mode,
            "best": None if best is None else asdict(best),
            **({} if self.raw is None else {"raw": asdict(self.raw)}),
            "trials": [asdict(trial) for trial in self.trials],
        }

    def _resume(self) -> None:
        try:
            fields = json.loads(self.path.read_bytes())
            found = {key: fields[key] for key in self._of}
            self.trials = [Trial(**trial) for trial in fields["trials"]]
            self.raw = RawTrial(**fields["raw"]) if "raw" in fields else None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error!r}. Delete it, or write to another folder."
            ) from error
        for key, expected in self._of.items():
            if found[key] != expected:
                raise CheckpointError(
                    f"{self.path} is of the {key} {found[key]!r}, not {expected!r}: "
                    "write to another folder, or delete it to start again."
                )


def alone_in(folder: Path) -> Lock:
    """Make a folder and lock it against other processes."""
    advice = "wait for it, or give another folder"
    return lock_folder(folder, ".lock", 0, f"{folder} is being written to", advice)


def _split(line: str) -> list[str]:
    """The words of a command line; on Windows a backslash separates folders and escapes nothing."""
    words = shlex.shlex(line, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    if sys.platform == "win32":
        words.escape = ""
    return list(words)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and its children, unless it ended by itself."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        ending = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(ending, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(file: IO[bytes]) -> list[str]:
    """The last non-empty lines of an output."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _metric(lines: list[str]) -> tuple[float | None, str | None]:
    if not lines:
        return None, "it printed nothing: the last line of its stdout must be the metric"
    try:
        metric = float(lines[-1])
    except ValueError:
        return None, f"the last line of its stdout is not a number: {lines[-1][:_SHOWN]!r}"
    return (metric, None) if math.isfinite(metric) else (None, f"its metric is {metric}")


def _crash(status: int, lines: list[str]) -> str:
    how = f"it was killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {lines[-1][:_SHOWN]}" if lines else how
