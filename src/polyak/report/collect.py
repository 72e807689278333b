"""From paths to records of runs: finds the files and gives each to the module for its kind.

A ``Collector`` can be called again while a run goes on: of logs it reads what is new, of other files those
that changed. A log that is shorter than it was, is another file, or has other bytes where the last look ended
was restarted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from polyak._foreign.open_any import is_checkpoint_folder, is_part_of_folder
from polyak.archive.snapshots import holds_snapshots
from polyak.errors import ConfigError, PolyakError
from polyak.report.archives import archive_facts
from polyak.report.averages import ENDINGS, weights_in
from polyak.report.checkpoints import by_one_count, judged_of
from polyak.report.decisions import ENDING, decision_facts
from polyak.report.environment import FILE, read_environment
from polyak.report.facts import Cost, Run, Series
from polyak.report.lightning import is_lightnings
from polyak.report.logged import logged_at
from polyak.report.logs import Column, Columns, Read, csv_lines, json_lines, trainer_state
from polyak.report.metrics import metrics_of
from polyak.report.sweeps import sweep_facts
from polyak.report.tensorboard import events
from polyak.report.thin import thinned
from polyak.select import judged
from polyak.select.sweep import RECORD

T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], object]
_DEPTH = 4  # folders below the one that was given
_FILES = 200  # with weights, of one run: the newest
_TAIL = 256  # bytes by which a log is known again
_TOKENS = ("num_input_tokens_seen", "num_tokens", "tokens")
# Trials of a sweep, and what trainers keep beside weights.
_LEFT_OUT = re.compile(
    r"abandoned|trial\.safetensors|(optimizer|scheduler|scaler|rng_state|training_args|random_states)\b.*"
)
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\..*")  # its index is the checkpoint


class _Found(NamedTuple):
    """The files of a run by kind."""

    name: str
    root: Path
    archives: list[Path]
    logs: list[Path]
    sweeps: list[Path]
    judgements: list[Path]
    decisions: list[Path]
    environments: list[Path]
    weights: list[Path]


@dataclass
class _Log:
    """A log as far as it was read. ``tail``: the last bytes before ``end``."""

    state: tuple[int, ...] = ()
    columns: Columns = field(default_factory=Columns)
    end: int = 0
    tail: bytes = b""
    torn: int = 0


def collect(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The records of runs.

    Args:
        paths: folders of runs, archives, and files; a folder is one run, and files in one folder are one.

    Returns:
        One record for each run, in the order given.

    Raises:
        ConfigError: a path does not exist, or nothing in it can be read.
    """
    return Collector(paths).collect()


class Collector:
    """Reads runs, and reads them again as they grow.

    Args:
        paths: as of ``collect``.

    Raises:
        ConfigError: a path does not exist.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        for path in paths:
            if not Path(path).exists():
                raise ConfigError(f"{path} does not exist: give the folder of a run, an archive or files.")
        self._paths = list(map(Path, paths))
        self._logs: dict[Path, _Log] = {}
        self._read: dict[tuple[Path, str], tuple[object, Any]] = {}

    def collect(self) -> list[Run]:
        """The records now.

        Raises:
            ConfigError: there is nothing that can be read.
        """
        found = list(_grouped(self._paths))
        runs = [self._run(one) for one in found]
        if not any(any(one[2:]) for one in found) or not any(map(_was_read, found, runs)):
            reasons = [problem for run in runs for problem in run.problems]
            raise ConfigError(
                f"{', '.join(map(str, self._paths))} holds no log, archive, sweep or average that can be "
                f"read{': ' + '; '.join(reasons) if reasons else ''}."
            )
        return runs

    def state(self) -> list[object]:
        """What differs once a file that ``collect`` reads has changed, appeared or gone; opens none.

        Raises:
            OSError: a file went while the folder was listed.
        """
        files = (path for one in _grouped(self._paths) for kind in one[2:] for path in kind)
        return [(path, _state_of(path)) for path in files]

    def _run(self, found: _Found) -> Run:
        problems: list[str] = []

        def each(paths: list[Path], read: Callable[[Path, str], T]) -> list[T]:
            """What reading gives, of the files that can be read."""
            out: list[T] = []
            for path in paths:
                name = path.relative_to(found.root).as_posix()
                try:
                    out.append(self._once(path, lambda path=path, name=name: read(path, name)))
                except (PolyakError, OSError, ValueError) as error:
                    reason = str(error).replace(f"{found.root}{os.sep}", "")
                    problems.append(reason if name in reason else f"{name}: {reason}")
            return out

        weights = each(found.weights[:_FILES], weights_in)
        if len(found.weights) > _FILES:
            problems.append(f"{len(found.weights) - _FILES} older files with weights were left out")
        # None of Lightning's checkpoints may say otherwise.
        behind = 1 if {one.behind for one in weights if one.behind is not None} == {1} else 0
        columns = self._log_columns(found.logs, found.root, problems, behind)
        environment = {
            k: v for one in each(found.environments, lambda p, _: read_environment(p)) for k, v in one.items()
        }
        rate = _tokens_per_step(columns)
        sets = by_one_count([one for file in weights for one in file.weights])
        judgements = each(found.judgements, lambda path, name: (name, tuple(judged.judgements_in(path))))
        return Run(
            name=found.name,
            metrics=tuple(metrics_of(columns)),
            weights=sets,
            archives=tuple(each(found.archives, lambda path, name: archive_facts(path, name))),
            sweeps=tuple(each(found.sweeps, sweep_facts)),
            judged=judged_of(judgements, lambda name: self._fingerprint(found.root / name)),
            logged=logged_at(sets, columns),
            decisions=tuple(each(found.decisions, decision_facts)),
            adaptive=tuple(one.adaptive for one in weights if one.adaptive is not None),
            distances=_logged(columns, "distance"),
            skipped=next(iter(_logged(columns, "skipped").values()), None),
            cost=_cost(columns, environment),
            tokens_per_step=rate,
            problems=tuple(problems),
        )

    def _fingerprint(self, path: Path) -> str | None:
        """Of a file that was judged; None if it is gone."""
        try:
            return self._once(path, lambda: judged.fingerprint(path), "fingerprint")
        except OSError:
            return None

    def _once(self, path: Path, read: Callable[[], T], what: str = "") -> T:
        """What reading gives; again only if the file, or one in the folder, has changed."""
        state = _state_of(path)
        known = self._read.get((path, what))
        if known is None or known[0] != state:
            known = state, read()
            self._read[path, what] = known
        return known[1]

    def _log_columns(
        self, logs: list[Path], root: Path, problems: list[str], behind: int
    ) -> dict[str, Column]:
        merged = Columns()
        for path in sorted(
            logs, key=lambda path: path.stat().st_mtime_ns
        ):  # of a resumed run the newest last
            name = path.relative_to(root).as_posix()
            try:
                self._read_on(path)
            except (OSError, ValueError) as error:
                problems.append(f"{name}: {error}")
            if (log := self._logs.get(path)) is not None:
                merged.join(log.columns, behind if is_lightnings(path, log.columns) else 0)
                if log.torn:
                    problems.append(f"{name}: lines that are no JSON objects were left out: {log.torn}")
        return merged.sorted()

    def _read_on(self, path: Path) -> None:
        """Read what a log has gained since the last call; from its start if it was restarted."""
        about = path.stat()
        state = (about.st_ino, about.st_size, about.st_mtime_ns)
        read, log = _reader(path), self._logs.get(path, _Log())
        if state == log.state:
            return
        if read is trainer_state or (log.state and _begun_anew(path, log)):
            log = _Log()
        self._logs[path] = log
        while True:
            before = log.end
            rows, log.end, torn = read(path, before)
            log.columns.add(rows)
            log.torn += torn
            if log.end == before or read not in (json_lines, csv_lines):
                break
        # After an error the next call tries again; and the state is that before reading, so that it sees what
        # was written meanwhile.
        log.tail, log.state = _tail(path, log.end), state


def _begun_anew(path: Path, log: _Log) -> bool:
    about = path.stat()
    return about.st_ino != log.state[0] or about.st_size < log.end or _tail(path, log.end) != log.tail


def _tail(path: Path, end: int) -> bytes:
    """The bytes before a place, of which a line of a log that was written again has others."""
    with path.open("rb") as file:
        file.seek(max(0, end - _TAIL))
        return file.read(min(end, _TAIL))


def _reader(path: Path) -> Callable[[Path, int], Read]:
    if path.name == "trainer_state.json":
        return trainer_state
    if "tfevents" in path.name:
        return events
    return csv_lines if path.suffix == ".csv" else json_lines


def _was_read(found: _Found, run: Run) -> bool:
    """Whether some file of the run could be read, if only an empty log."""
    return bool(run.metrics) or len(run.problems) < sum(map(len, found[2:]))


def _grouped(paths: Sequence[Path]) -> list[_Found]:
    """The files of each run: folders as they are, single files and archives by the folder they are in."""
    roots: dict[Path, list[Path]] = {}
    for path in paths:
        alone = path.is_file() or holds_snapshots(path) or _is_checkpoint_alone(path)
        roots.setdefault(path.resolve().parent if alone else path.resolve(), []).append(path.resolve())
    names = [root.name or str(root) for root in roots]
    return [
        _sorted(str(root) if names.count(name) > 1 else name, root, given)
        for name, (root, given) in zip(names, roots.items(), strict=True)
    ]


def _sorted(name: str, root: Path, given: Sequence[Path]) -> _Found:
    found = _Found(name, root, *([] for _ in range(7)))
    for path in dict.fromkeys(one for start in given for one in _walk(start, _DEPTH)):
        if (kind := _kind(path, found)) is not None:
            kind.append(path)
    states = [path for path in found.logs if path.name == "trainer_state.json"]
    for path in sorted(states, key=lambda path: path.stat().st_mtime)[:-1]:
        found.logs.remove(path)  # each checkpoint holds the whole history up to it
    found.weights.sort(key=lambda path: -path.stat().st_mtime)
    return found


def _walk(start: Path, depth: int) -> Iterator[Path]:
    """Files below a folder, and archives and checkpoints that are folders."""
    if start.is_file():
        yield start
        return
    if holds_snapshots(start) or _is_checkpoint_alone(start):
        yield start
        inner = [start / "sweep"] if (start / "sweep").is_dir() else []
        inner += [path for path in start.glob("*") if path.suffix in (".json", ".jsonl")]
    else:
        inner = sorted(start.iterdir())
    for path in inner if depth else ():
        if not path.name.startswith(".") and not _LEFT_OUT.fullmatch(path.name):
            yield from _walk(path, depth - 1)


def _is_checkpoint_alone(path: Path) -> bool:
    """Whether a folder is one checkpoint only; a run may keep its last one beside folders of earlier ones."""
    return is_checkpoint_folder(path) and not any(map(_is_other_checkpoint, path.iterdir()))


def _is_other_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return is_checkpoint_folder(path)
    return _has_weights(path.name) and not is_part_of_folder(path.name)


def _has_weights(name: str) -> bool:
    return name.endswith(ENDINGS) and not _SHARD.fullmatch(name) and not _LEFT_OUT.fullmatch(name)


def _kind(path: Path, found: _Found) -> list[Path] | None:
    """The list a file belongs in; None if a report says nothing of it."""
    name = path.name
    if path.is_dir():
        return found.archives if holds_snapshots(path) else found.weights
    if name == FILE:
        return found.environments
    if name == RECORD:
        return found.sweeps
    if name == judged.RECORD:
        return found.judgements
    if name.endswith(ENDING):
        return found.decisions
    if name.endswith((".jsonl", ".csv")) or "tfevents" in name or name == "trainer_state.json":
        return found.logs
    return found.weights if _has_weights(name) else None


def _state_of(path: Path) -> object:
    """What changes when a file does; of a folder, of each file in it."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, (about := file.stat()).st_size, about.st_mtime_ns) for file in files]


def _logged(columns: dict[str, Column], name: str) -> dict[str, Series]:
    """The columns ``ema/NAME`` and ``ema/TRACK/NAME`` that trainers log, by track."""
    found = {column: re.fullmatch(rf"ema/(?:(.+)/)?{name}", column) for column in columns}
    return {
        match[1] or "": thinned(columns[column].steps, columns[column].values)
        for column, match in found.items()
        if match is not None
    }


def _cost(columns: dict[str, Column], environment: dict[str, str]) -> Cost:
    train, update = columns.get("seconds/train"), columns.get("seconds/ema")
    if train is None or update is None:
        return replace(Cost(), environment=environment)
    return Cost(
        float(train.steps[-1]), float(np.max(train.values)), float(np.max(update.values)), environment
    )


def _tokens_per_step(columns: dict[str, Column]) -> float | None:
    for name in _TOKENS:
        if (column := columns.get(name)) is not None and column.axis != "epoch" and column.steps[-1] > 0:
            return float(column.values[-1] / column.steps[-1])
    return None
