"""Saving and loading an EMA: files and state dicts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar, overload

from polyak._core.agreement import Report
from polyak._core.background_save import (
    Saving,
    host_copies,
    save_in_background,
    unchanged_check,
    wait_for_last,
)
from polyak._core.capture import Captured, captured_model, captured_track, wide_pieces, widened
from polyak._core.ema import ModelT_co
from polyak._core.initial_weight import warn_if_mostly_initial
from polyak._core.lent_tensors import LentTensors
from polyak._core.load_state import LoadReport, check
from polyak._core.observe import ObservedEMA
from polyak._core.rank_report import report_of, report_of_pieces
from polyak._core.resume_file import packed, read_state
from polyak._core.save import Content, check_name, opened, save_file, weights_of, writer
from polyak._core.state_dict import EMAState, State, TrackState, stored_of, without_tensors
from polyak._core.swap_guard import finished
from polyak._core.tensors import T
from polyak.errors import CheckpointError, ConfigError


class PersistentEMA(ObservedEMA[ModelT_co, T]):
    """An EMA with the methods that save and load it."""

    def state_dict(self) -> State:
        """Everything needed to resume: schedules, counters, histories, random state, averages.

        Tensors are the averages themselves, under the model's names without wrapper prefixes; write the
        state before the next update or copy it. ``torch.load(weights_only=True)`` reads it back. Of a sharded
        average they are DTensors, and this process's parts of them.

        ``torch.distributed.checkpoint`` saves and loads an EMA as it is, into any layout of the model.
        """
        state, averages = self._state("state_dict"), self._averages
        if self._lent is None or not self._lent.written:
            parameters = [e.name for e in averages.plan.having("average") if e.kind == "parameter"]
            tensors = [track.tensors[name] for track in self.tracks.values() for name in parameters]
            self._lent = LentTensors(tensors, averages.ops)
        return state.changed(averages.state_form(averages.plan)).to_dict()

    def _state(self, verb: str) -> EMAState[T]:
        self._refuse_while_swapped(verb)
        self._notice_unseen_steps()
        averages = self._averages
        return EMAState(
            settings=self._settings,
            skipped=averages.updater.skipped(),
            tracks={name: TrackState[T].of(track) for name, track in self.tracks.items()},
            copies=dict(averages.copies),
            stored=stored_of(averages.copies),
            frozen=[entry.name for entry in averages.plan.frozen()],
            run=self.run,
            clock=self._clock,
            observed=None if self._adaptive is None else (self._adaptive, self._choice),
        )

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
        self._refuse_while_swapped("load_state_dict")
        self._sync_with_model()
        averages, theirs = self._averages, EMAState[T].from_dict(state)
        plan, tracks = averages.with_room_for(theirs.averaged(), self._clock.step)
        form = averages.state_form(plan)
        loaded, report = check(
            theirs, tracks, averages.copies, self._settings, self._adaptive, averages.ops, form
        )
        if strict and report:
            raise CheckpointError(f"{report}. Nothing was loaded; strict=False loads what fits.")
        loaded = averages.local(loaded, plan)

        def take() -> None:
            averages.restore(loaded, plan, tracks)
            self._clock, self.run, self._pending, self._lent = loaded.clock, theirs.run, None, None
            self._choice = loaded.choice or self._choice

        finished(take)
        return report

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
        ranks, ops = self._averages.plan.ranks, self._averages.ops
        if path is None and (ranks is None or ranks.is_first):
            raise ConfigError(
                "path=None: only ranks other than the first, which write nothing, need no path."
            )
        content, stream = opened(
            ranks, partial(self._content, path, track, resumable, background), self._pieces
        )
        if not resumable and track != "raw":
            warn_if_mostly_initial(self._averages.tracks, self._track(track), "save", 2)
        save = partial(save_file, path or "", content, ops, max_shard_size, stream)
        write = writer(stream, save, content, path)
        if not background:
            return write()
        return save_in_background(self, path or "the file of another rank", write)

    def _content(
        self, path: str | os.PathLike[str] | None, track: str | None, resumable: bool, copy: bool
    ) -> Content[T]:
        if path is not None:
            check_name(path)
        self._refuse_while_swapped("save")
        self._notice_unseen_steps()
        wait_for_last(self)
        self._sync_with_model()
        begun, averages = self._moment(), self._averages
        if resumable:
            content = packed(self._state("save"), averages.plan.placed())
        else:
            chosen = None if track == "raw" else self._track(track)
            content = weights_of(averages, chosen, self._clock.step, self.run)
        check = unchanged_check(content.tensors, averages.ops, begun, self._moment)
        if not copy:
            return replace(content, check=check)
        copies = host_copies(content.tensors, averages.ops)
        check()
        return replace(content, tensors=copies)

    def _pieces(self, content: Content[T]) -> Report:
        pieces = content.pieces, content.squares
        return report_of_pieces(self._averages, self.step, self._seed, content.tensors, *pieces)

    def load(self, path: str | os.PathLike[str], strict: bool = True) -> LoadReport:
        """Continue from a file that ``save(path, resumable=True)`` wrote; see ``load_state_dict``.

        Raises:
            CheckpointError: the file is damaged, is not resumable, or under strict does not match.
        """
        self._sync_with_model()
        averages, plan = self._averages, self._averages.plan
        state = read_state(path, averages.ops, plan.placed(), averages.state_form(plan))
        return self.load_state_dict(state, strict)

    def _capture(self, track: str, dtype: str) -> Captured[T]:
        """A copy of a track, rounded to ``dtype`` and without constant tensors, or of the "raw" model."""
        ranks, ops = self._averages.plan.ranks, self._averages.ops
        copied = partial(self._copied, track, dtype)
        if ranks is None:
            return Captured(copied(), ops)
        made: list[Content[T]] = []

        def wide() -> list[str]:
            made.append(copied())
            return wide_pieces(made[0], ops) if dtype == "float16" and track != "raw" else []

        names: list[str] = ranks.agree(
            wide, lambda named: sorted({n for names in named.values() for n in names})
        )
        content = widened(made[0], self._track(track), names, ops) if names else made[0]
        content, stream = opened(ranks, lambda: content, self._pieces)
        return Captured(content, ops, stream)

    def _copied(self, track: str, dtype: str) -> Content[T]:
        self._refuse_while_swapped("capture")
        self._sync_with_model()
        begun, ops = self._moment(), self._averages.ops
        chosen = None if track == "raw" else self._track(track)
        held = {entry.name: entry.live for entry in self._averages.plan.entries.values()}
        check = unchanged_check(held if chosen is None else chosen.tensors, ops, begun, self._moment)
        if chosen is None:
            content = captured_model(self._averages, self._clock.step, self.run)
        else:
            content = captured_track(self._averages, chosen, self._clock.step, self.run, dtype)
        check()
        return content

    def _report(self, digest: Callable[[T], str]) -> Report:
        self._refuse_while_swapped("verify")
        self._sync_with_model()
        self._averages.synchronize()
        return report_of(self._averages, self.step, self._seed, digest)

    @property
    def _settings(self) -> dict[str, int]:
        return {"every": self.every, "start": self.start, "seed": self._seed}

    def _moment(self) -> int | None:
        """The last step that was averaged; None during an update."""
        return self._clock.step - self._clock.waiting if self._pending is None else None


ResultT = TypeVar("ResultT")
AnyEMA: TypeAlias = PersistentEMA[Any, Any]  # of either framework


def state_without_tensors(ema: AnyEMA) -> State:
    """The state of an EMA, with names in place of tensors; see ``with_tensors``."""
    return without_tensors(ema._state("state_dict").to_dict())  # pyright: ignore[reportPrivateUsage]


def capture(ema: AnyEMA, track: str, dtype: str) -> Captured[Any]:
    """A copy of a track for an archive, rounded to ``dtype`` and without tensors that never change.

    Args:
        ema: of either framework. If it is sharded, each rank calls this and has its pieces.
        track: its name; "raw" for the model's own weights, which are copied exactly.
        dtype: "float32", "float16" or "bfloat16".

    Raises:
        SwapError: the model holds an average now.
        CheckpointError: a rank of a sharded average was lost or has another step.
    """
    return ema._capture(track, dtype)  # pyright: ignore[reportPrivateUsage]


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
