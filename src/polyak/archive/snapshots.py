"""The files of an archive: their names, their contents and their retention.

One file per track and step, ``000012000-long.safetensors``: plain averages that any tool loads, each with its
profile, without tensors that training does not change. ``…-base.safetensors`` is the raw model at the
archive's creation; at step 0 that is θ₀, from which every average starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from polyak._core.capture import Captured, SnapshotState
from polyak._files.header import Header
from polyak._files.open import header_of
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
        """The header's fields besides role, decay and profile."""
        return SnapshotState.of(self.header)

    @property
    def number(self) -> int:
        """The number of the snapshot in its run, from 1; 0 for the base."""
        return self.state.number


def check_keep(keep: Keep) -> None:
    """Check a retention rule."""
    if keep not in ("all", "log", "even") and (type(keep) is not int or keep < 1):
        raise ConfigError(
            f'keep={keep!r}: must be "all", "log", "even" or a number of snapshots, at least 1.'
        )


def holds_snapshots(folder: Path) -> bool:
    """Whether a folder has files that are named like snapshots."""
    return folder.is_dir() and any(_NAME.fullmatch(path.name) for path in folder.iterdir())


class SnapshotFolder:
    """The snapshots of a folder. A header is read once, and again if the file was replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[tuple[int, ...], Snapshot]] = {}

    def scan(self) -> list[Snapshot]:
        """The current snapshots, the base first, then in order of time."""
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
                    # removed or moved by another process after it was listed
        self._known = found
        ordered = [snapshot for _, snapshot in found.values()]
        return sorted(ordered, key=lambda snapshot: (snapshot.number, snapshot.path.name))


def _read(path: Path) -> Snapshot:
    with open_weights(path) as weights:
        return Snapshot(path, header_of(weights))


def write_snapshot(folder: Path, captured: Captured[Any], number: int) -> None:
    """Write one file; number 0 is the base."""
    header = replace(captured.header, state={**captured.header.state, "number": number})
    track = quote(header.track, safe="") if number else "base"
    captured.write(folder / f"{header.step:09}-{track}.safetensors", header.to_metadata())


def superfluous(snapshots: Sequence[Snapshot], keep: Keep) -> list[Path]:
    """The files that a retention rule drops; never the base."""
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
