"""Snapshots of a run's averages, from which other averages can be synthesised after training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from polyak._core.persistence import AnyEMA
from polyak.archive.recorder import Recorder
from polyak.archive.snapshots import Keep, Snapshot, SnapshotFolder, check_keep
from polyak.errors import CheckpointError, ConfigError

_DTYPES = ("float16", "bfloat16", "float32")


class Archive:
    """A folder of snapshots: taken while training, or opened afterwards for ``synthesize``.

    With an ``ema`` it takes a snapshot of θ₀ and, at regular steps, of all tracks. Tensors are copied
    within ``ema.update()`` and written by a background thread. A failed write gives a warning and does not
    stop training; ``close`` raises it.

    A resumed run continues its folder: load the EMA's state first. Snapshots newer than the step it
    resumes from are moved to ``abandoned/``.

    Args:
        folder: created if missing. It belongs to one run.
        ema: the averages to follow; without one the archive is only read.
        every: training steps between snapshots, or "auto": each time the shortest-lived track has replaced
            half of itself, and at least after 1 % of the steps so far.
        dtype: of averaged tensors on disk: "float16", "bfloat16" or "float32", or the framework's own.
            A tensor that float16 would overflow stays float32.
        keep: "log" keeps the newest 16, then 8 for each doubling of their age; "even" keeps
            up to 64 at equal distances; n the n from which most can be synthesised; "all" all. θ₀ is kept.

    Raises:
        ConfigError: an argument is invalid.
        CheckpointError: the folder belongs to another run, or cannot be written.

    Examples:
        >>> import tempfile, torch, polyak
        >>> ema = polyak.EMA(torch.nn.Linear(2, 1), {"short": 0.99, "long": 0.999})
        >>> with Archive(tempfile.mkdtemp(), ema, every=10) as archive:
        ...     for _ in range(35):
        ...         ema.update()
        >>> archive.steps
        [0, 10, 20, 30, 35]

    Source: Karras et al. 2024, arXiv 2312.02696, §3.2.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        ema: AnyEMA | None = None,
        every: int | Literal["auto"] = "auto",
        dtype: object = "float16",
        keep: Keep = "log",
    ) -> None:
        name = str(dtype).removeprefix("torch.").removeprefix("paddle.")
        if name not in _DTYPES:
            raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(_DTYPES)}.")
        if every != "auto" and (type(every) is not int or every < 1):
            raise ConfigError(f'every={every!r}: must be a whole number of steps, at least 1, or "auto".')
        check_keep(keep)
        self.folder = Path(folder)
        self._snapshots = SnapshotFolder(self.folder)
        self._recorder = None if ema is None else Recorder(self._snapshots, ema, every, name, keep)

    @property
    def snapshots(self) -> list[Snapshot]:
        """The files with their headers, oldest first; a header is read once however often this is called.

        Raises:
            CheckpointError: there are none, one is damaged, or they belong to several runs.
        """
        self.flush()
        found = self._snapshots.scan()
        if not found:
            raise CheckpointError(f"{self.folder} holds no snapshots.")
        runs = sorted({snapshot.header.run for snapshot in found})
        if len(runs) > 1:
            raise CheckpointError(
                f"{self.folder} holds snapshots of the runs {', '.join(runs)}: an archive is of one. "
                "Move the others elsewhere."
            )
        return found

    @property
    def steps(self) -> list[int]:
        """The training steps of the snapshots, ascending; the first is the base."""
        return sorted({snapshot.step for snapshot in self.snapshots})

    @property
    def run(self) -> str:
        """The id of the run, as in ``ema.run``."""
        return self.snapshots[0].header.run

    def snapshot(self) -> None:
        """Take a snapshot now, whatever ``every`` is; at most one per step.

        Raises:
            ConfigError: the archive follows no EMA.
        """
        if self._recorder is None:
            raise ConfigError(
                f"the archive {self.folder} follows no EMA: it was opened to be read, or closed."
            )
        self._recorder.take()

    def flush(self) -> None:
        """Wait until every snapshot taken is on disk."""
        if self._recorder is not None:
            self._recorder.wait()

    def close(self) -> None:
        """Take a last snapshot, finish writing and stop following the EMA.

        Raises:
            CheckpointError: a snapshot could not be written.
        """
        if self._recorder is not None:
            self._recorder.take()
        self._stop()

    def _stop(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # after an error the weights may be invalid: no last snapshot
            self._stop()
