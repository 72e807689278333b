"""Runs as they are now, for a page or a terminal that follows them.

Nothing runs in the background: files are looked at when somebody asks, and read when one has changed. The
training's files are only ever opened for reading, and no lock is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from polyak.errors import ConfigError
from polyak.report.collect import Collector
from polyak.report.facts import Run

_REST = 9  # times as long as a look took, so that reading has at most a tenth of one core


class View(NamedTuple):
    """The records, and a number that grows when they change."""

    version: int
    runs: tuple[Run, ...]


class Live:
    """Runs that are looked at again and again, from any thread.

    A folder without anything to read yet is an empty run. While one cannot be listed, as when a training
    deletes it to begin anew, what was known of it is kept, with the reason among its problems.

    Args:
        paths: as of ``collect``.
        every: seconds between two looks, at least.
        clock: seconds that pass.

    Raises:
        ConfigError: a path does not exist.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        every: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._collector = Collector(paths)
        self._every, self._clock, self._next = every, clock, -float("inf")
        self._lock = Lock()
        self._state: list[object] | None = None
        self._known = tuple(Run(Path(path).resolve().name) for path in paths)
        self._view = View(1, self._known)

    def look(self) -> View:
        """The runs now, or as they were at the last look if that was less than ``every`` seconds ago."""
        with self._lock:
            begun = self._clock()
            if begun >= self._next:
                runs = self._now()
                if runs != self._view.runs:
                    self._view = View(self._view.version + 1, runs)
                ended = self._clock()
                self._next = ended + max(self._every, _REST * (ended - begun))
            return self._view

    def _now(self) -> tuple[Run, ...]:
        try:
            state = self._collector.state()
            if state != self._state:
                self._known = self._read()
                # As it was before reading: what changes meanwhile is seen at the next look.
                self._state = state
        except OSError as error:  # a file, or the folder, went after it was listed
            self._state = None
            first, *others = self._known
            return replace(first, problems=(*first.problems, str(error))), *others
        return self._known

    def _read(self) -> tuple[Run, ...]:
        try:
            return tuple(self._collector.collect())
        except ConfigError as error:  # nothing to read yet
            first, *others = (Run(run.name) for run in self._known)
            return replace(first, problems=(str(error),)), *others
