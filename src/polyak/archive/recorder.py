"""Taking consistent snapshots of an EMA during training, without delaying it."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from polyak._core.capture import Captured
from polyak._core.persistence import AnyEMA, decided_by_first, writes_files
from polyak._core.save_and_load import capture
from polyak._files.locks import Lock, lock_folder
from polyak._files.write import sweep_all
from polyak.archive.snapshots import Keep, Snapshot, SnapshotFolder, superfluous, write_snapshot
from polyak.errors import CheckpointError, ConfigError

ABANDONED = "abandoned"
_PATIENCE = 0.2  # seconds to wait for the lock: a run holds it until it ends, a reader never does
_HALF = 0.5 * (1 + 1e-9)  # allows for rounding in products of decays


class Recorder:
    """Follows an EMA and writes snapshots of all its tracks into a folder.

    Tensors are copied within ``ema.update()``, so later updates cannot change a snapshot; a background thread
    writes them, at most one snapshot behind. Of a sharded average every rank has a recorder; rank 0's writes.
    """

    def __init__(
        self,
        snapshots: SnapshotFolder,
        ema: AnyEMA,
        every: int | Literal["auto"],
        dtype: str,
        keep: Keep,
    ) -> None:
        _refuse_by_name(ema)
        self._snapshots, self._ema, self._dtype = snapshots, ema, dtype
        self._folder = snapshots.path
        self._every: int | None = None if every == "auto" else every
        self._keep: Keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="polyak-archive")
        self._writing: Future[None] | None = None
        self._failure: Exception | None = None
        self._process = os.getpid()
        self._writes = writes_files(ema)
        self._lock: Lock | None = None
        try:
            decided_by_first(ema, self._take_folder)
            if not self._rewound():
                self._write([capture(ema, "raw", "float32")], 0)
        except BaseException:
            self._release()
            raise
        self._handle = ema.watch(self._after_update)

    @property
    def _forked(self) -> bool:
        """Whether this process is a fork of the writer, without its thread and lock."""
        return os.getpid() != self._process

    def _take_folder(self) -> None:
        what = f"the archive {self._folder} is being written"
        advice = "an archive has one writer; close that one, or give another folder"
        self._lock = lock_folder(self._folder, ".archive.lock", _PATIENCE, what, advice)
        sweep_all(self._folder)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def take(self) -> None:
        """Take a snapshot of the current step, if there is none yet."""
        if self._forked or (self._number and self._ema.step == self._step):
            return
        captured = [capture(self._ema, name, self._dtype) for name in self._ema.tracks]
        self._number += 1
        self._mark(self._ema.step)
        self.wait()
        self._writing = self._writer.submit(self._write, captured, self._number)

    def wait(self) -> None:
        """Wait until all snapshots are on disk. A failure gives a warning now and is raised by ``stop``."""
        if self._forked or self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except (CheckpointError, OSError) as error:
            self._failure = error
            warnings.warn(f"a snapshot is missing from {self._folder}: {error}", RuntimeWarning, stacklevel=2)

    def stop(self) -> None:
        """Stop following the EMA and finish writing."""
        self._handle.remove()
        if self._forked:
            return
        try:
            self.wait()
            self._writer.shutdown()
        finally:
            self._release()
        if self._failure is not None:
            raise CheckpointError(f"{self._folder} lacks a snapshot: {self._failure}") from self._failure

    def _after_update(self) -> None:
        if self._forked:
            return
        step = self._ema.step
        if step <= self._step:  # an earlier state was loaded
            self.wait()
            self._rewound()
        for name, track in self._ema.tracks.items():
            self._left[name] *= track.beta
        if self._due(step):
            self.take()

    def _due(self, step: int) -> bool:
        if self._every is None:
            return min(self._left.values()) <= _HALF and step - self._step >= step // 100
        return step // self._every > self._step // self._every

    def _rewound(self) -> bool:
        """Continue after this run's last snapshot up to the current step; whether there is a base."""
        self._number, step, based = decided_by_first(self._ema, self._rewind)
        self._mark(step)
        return based

    def _rewind(self) -> tuple[int, int, bool]:
        """The number and step of that snapshot; newer ones are moved to ``abandoned/``."""
        present: list[Snapshot] = []
        for snapshot in self._snapshots.scan():
            if snapshot.header.run != self._ema.run:
                raise CheckpointError(
                    f"{self._folder} belongs to run {snapshot.header.run}, this EMA to run {self._ema.run}. "
                    "To continue that run, load its state into the EMA before the archive is made; "
                    "otherwise give another folder."
                )
            if snapshot.step <= self._ema.step:
                present.append(snapshot)
                continue
            aside = self._folder / ABANDONED
            aside.mkdir(exist_ok=True)
            snapshot.path.replace(aside / snapshot.path.name)
        number = max((snapshot.number for snapshot in present), default=0)
        step = max((snapshot.step for snapshot in present), default=self._ema.step)
        return number, step, any(snapshot.number == 0 for snapshot in present)

    def _mark(self, step: int) -> None:
        """Restart counting at this step: the remaining weight of each track's past, and the next due step."""
        self._step = step
        self._left = {
            name: track.profile.since(step).initial_weight if self._ema.step > step else 1.0
            for name, track in self._ema.tracks.items()
        }

    def _write(self, captured: list[Captured[Any]], number: int) -> None:
        for moment in captured:
            write_snapshot(self._folder, moment, number)
        if self._writes and self._keep != "all":
            for path in superfluous(self._snapshots.scan(), self._keep):
                path.unlink(missing_ok=True)


def _refuse_by_name(ema: AnyEMA) -> None:
    """Refuse averages from which none could be synthesized: one mixture is for all tensors."""
    for name, track in ema.tracks.items():
        if track.by_name:
            raise ConfigError(
                f"the track {name!r} averages its tensors by several decays, {track.decay}, and an archive "
                "mixes snapshots of one decay. Archive a second EMA of the model, with a decay for all "
                "tensors."
            )
