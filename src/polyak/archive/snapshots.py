"""The files of an archive: their names, what they hold, which of them to keep.

One file per track and moment, ``000012000-long.safetensors``: plain averages that any tool loads, each
with its profile, without the tensors that training does not touch. ``…-base.safetensors`` holds the raw
model as the archive found it; at step 0 that is the θ₀ every average starts from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from polyak._core.capture import Captured, SnapshotState
from polyak._files.header import Header
from polyak._files.open import header_of
from polyak._files.write import write_arrays
from polyak._foreign.open_any import open_weights
from polyak.archive.retention import even, logarithmic, most_informative
from polyak.errors import CheckpointError, ConfigError

Keep: TypeAlias = Literal["all", "log", "even"] | int

_NAME = re.compile(r"\d{9,}-.+\.safetensors")


class Snapshot(NamedTuple):
    """A file of an archive."""

    path: Path
    header: Header

    @property
    def step(self) -> int:
        """Training steps when it was taken."""
        return self.header.step or 0

    @property
    def state(self) -> SnapshotState:
        """What its header says besides role, decay and profile."""
        return SnapshotState.of(self.header)

    @property
    def number(self) -> int:
        """Which of its run's snapshots it belongs to, from 1; 0 for the base."""
        return self.state.number


def check_keep(keep: Keep) -> None:
    """Refuse what is no rule for thinning."""
    if keep not in ("all", "log", "even") and (type(keep) is not int or keep < 1):
        raise ConfigError(f'keep={keep!r}: must be "all", "log", "even" or how many, at least 1.')


def holds_snapshots(folder: Path) -> bool:
    """Whether a folder has files that are named like snapshots."""
    return folder.is_dir() and any(_NAME.fullmatch(path.name) for path in folder.iterdir())


class SnapshotFolder:
    """The snapshots of a folder. The header of a file is read once, and again when the file was replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[tuple[int, ...], Snapshot]] = {}

    def scan(self) -> list[Snapshot]:
        """The snapshots there are now, the base first, then as they were taken."""
        found: dict[str, tuple[tuple[int, ...], Snapshot]] = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if _NAME.fullmatch(path.name):
                try:
                    about = path.stat()
                    identity = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
                    known, snapshot = self._known.get(path.name, ((), None))
                    if snapshot is None or known != identity:
                        snapshot = _read(path)
                    found[path.name] = identity, snapshot
                except (CheckpointError, FileNotFoundError):
                    if path.exists():
                        raise
                    # another process thinned it out, or moved it away, after it was listed
        self._known = found
        ordered = [snapshot for _, snapshot in found.values()]
        return sorted(ordered, key=lambda snapshot: (snapshot.number, snapshot.path.name))


def _read(path: Path) -> Snapshot:
    with open_weights(path) as weights:
        return Snapshot(path, header_of(weights))


def write_snapshot(folder: Path, captured: Captured, number: int) -> None:
    """Write one file; number 0 is the base."""
    header = replace(captured.header, state={**captured.header.state, "number": number})
    track = quote(header.track, safe="") if number else "base"
    write_arrays(folder / f"{header.step:09}-{track}.safetensors", captured.tensors, header.to_metadata())


def superfluous(snapshots: Sequence[Snapshot], keep: Keep) -> list[Path]:
    """The files that a rule does not keep; never the base."""
    numbers = sorted({snapshot.number for snapshot in snapshots} - {0})
    if keep == "all" or not numbers:
        return []
    if keep == "log":
        retained = logarithmic(numbers)
    elif keep == "even":
        retained = even(numbers)
    else:
        profiles = [[s.header.profile for s in snapshots if s.number == n] for n in numbers]
        known = [[profile for profile in row if profile is not None] for row in profiles]
        retained = {numbers[i] for i in most_informative(known, keep)}
    return [snapshot.path for snapshot in snapshots if snapshot.number and snapshot.number not in retained]
