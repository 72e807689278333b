"""Saving and loading an EMA: files and state dicts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from polyak._core.ema import ModelT_co
from polyak._core.observe import ObservedEMA
from polyak._core.tensors import T

if TYPE_CHECKING:
    from polyak._core.agreement import Report
    from polyak._core.background_save import Saving
    from polyak._core.load_report import LoadReport
    from polyak._core.state_dict import State


class PersistentEMA(ObservedEMA[ModelT_co, T]):
    """An EMA with the methods that save and load it.

    What they do is in ``save_and_load``, imported at their first call: it needs everything that reads and
    writes files, which takes as long to import as the rest of an EMA, and an update needs none of it.
    """

    def state_dict(self) -> State:
        """Everything needed to resume: schedules, counters, histories, random state, averages.

        Tensors are the averages themselves, under the model's names without wrapper prefixes; write the
        state before the next update or copy it. ``torch.load(weights_only=True)`` reads it back. Of a sharded
        average they are DTensors, and this process's parts of them.

        ``torch.distributed.checkpoint`` saves and loads an EMA as it is, into any layout of the model.
        """
        from polyak._core.save_and_load import state_dict

        return state_dict(self)

    def load_state_dict(self, state: State, strict: bool = True) -> LoadReport:
        """Continue where ``state_dict`` left off, bit for bit.

        The frozen parameters may differ: one that was averaged and is frozen now stays averaged, and one that
        was frozen and is trained now joins with its current value. So load the model's weights first.

        Of a sharded average the tensors may be whole, or DTensors of any layout; if it is another than this
        EMA's, all processes call this together.

        Args:
            state: from ``state_dict``, of an EMA over the same model with the same schedules.
            strict: refuse any mismatch. False loads what fits and reports the rest.

        Returns:
            The mismatches and how each was handled; empty (false) when everything matched.

        Raises:
            CheckpointError: the state is malformed or, under strict, differs. Nothing is changed then.
            SwapError: an average is live.
        """
        from polyak._core.save_and_load import load_state_dict

        return load_state_dict(self, state, strict)

    @overload
    def save(
        self,
        path: str | os.PathLike[str] | None,
        track: str | None = None,
        *,
        resumable: bool = False,
        max_shard_size: int | str | None = None,
        background: Literal[False] = False,
    ) -> None: ...
    @overload
    def save(
        self,
        path: str | os.PathLike[str] | None,
        track: str | None = None,
        *,
        resumable: bool = False,
        max_shard_size: int | str | None = None,
        background: Literal[True],
    ) -> Saving: ...
    def save(
        self,
        path: str | os.PathLike[str] | None,
        track: str | None = None,
        *,
        resumable: bool = False,
        max_shard_size: int | str | None = None,
        background: bool = False,
    ) -> Saving | None:
        """Write one average as a plain ``.safetensors`` file that any tool loads.

        Of a sharded average every rank calls this, and rank 0 writes one file with whole tensors, which it
        receives 16 MiB at a time; buffers are its own. An error of one rank is raised by all, and a rank that
        is lost is named within the process group's timeout.

        It contains the keys of ``model.state_dict()`` without wrapper prefixes (only the included ones when
        globs were given), averages in their storage dtype, and a description in its header.

        Args:
            path: the file; an old one is replaced only when the new one is complete, and keeps its mode and
                owner. A link is followed. Only rank 0 of a sharded average needs it, others can give None.
            track: the average, by default ``ema.following``; "raw" for the model's own weights.
            resumable: write everything ``load`` needs to continue bit for bit instead: every track,
                counters, random state. Such a file is not a model.
            max_shard_size: bytes, or "5GB"; above it, write shards and ``path + ".index.json"``.
            background: copy everything before this returns, and let a thread write the copy while training
                continues. The copy needs as much host memory as the file needs disk space; there is one at a
                time, since a save waits for the previous one.

        Returns:
            In the background, a handle: ``wait()`` returns when the file is on disk or raises the error,
            ``done`` is true once it ended. Otherwise None.

        Raises:
            ConfigError: the suffix is that of another format.
            CheckpointError: the file cannot be written, or another thread changed the averages meanwhile. An
                old file is intact. Or a rank was lost, has another step or cannot write.
            SwapError: an average is live, so raw and averaged weights could be confused.
        """
        from polyak._core.save_and_load import save

        return save(self, path, track, resumable, max_shard_size, background)

    def load(self, path: str | os.PathLike[str], strict: bool = True) -> LoadReport:
        """Continue from a file that ``save(path, resumable=True)`` wrote; see ``load_state_dict``.

        Raises:
            CheckpointError: the file is damaged, is not resumable, or under strict does not match.
        """
        from polyak._core.save_and_load import load

        return load(self, path, strict)

    def _report(self, digest: Callable[[T], str]) -> Report:
        from polyak._core.rank_report import report_of

        self._refuse_while_swapped("verify")
        self._sync_with_model()
        self._averages.synchronize()
        return report_of(self._averages, self.step, self._seed, digest)


ResultT = TypeVar("ResultT")
AnyEMA: TypeAlias = PersistentEMA[Any, Any]  # of either framework


def writes_files(ema: AnyEMA) -> bool:
    """Whether this process writes the files of an average: of a sharded one rank 0 does."""
    ranks = ema._averages.plan.ranks  # pyright: ignore[reportPrivateUsage]
    return ranks is None or ranks.is_first


def decided_by_first(
    ema: AnyEMA, act: Callable[[], ResultT], check: Callable[[], None] = lambda: None
) -> ResultT:
    """The result of ``act``, which rank 0 of a sharded average calls for every rank.

    Args:
        ema: of either framework; each rank calls this.
        act: what it returns, JSON can write; an exception is raised by every rank.
        check: called on every rank before; likewise.
    """
    ranks = ema._averages.plan.ranks  # pyright: ignore[reportPrivateUsage]
    if ranks is None:
        check()
        return act()
    return ranks.agree(check, lambda _: act())
