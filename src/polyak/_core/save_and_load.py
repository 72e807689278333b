"""What the methods of ``PersistentEMA`` do, where each is documented. An update imports none of it."""

# pyright: reportPrivateUsage=false
# These are methods of an EMA in all but their place.

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from polyak._core.agreement import Report
from polyak._core.background_save import (
    Saving,
    host_copies,
    save_in_background,
    unchanged_check,
    wait_for_last,
)
from polyak._core.capture import Captured, captured_model, captured_track, wide_pieces, widened
from polyak._core.initial_weight import warn_if_mostly_initial
from polyak._core.lent_tensors import LentTensors
from polyak._core.load_report import LoadReport
from polyak._core.load_state import check
from polyak._core.persistence import PersistentEMA
from polyak._core.rank_report import report_of_pieces
from polyak._core.resume_file import packed, read_state
from polyak._core.save import Content, check_name, opened, save_file, weights_of, writer
from polyak._core.state_dict import EMAState, State, TrackState, stored_of, without_tensors
from polyak._core.swap_guard import finished
from polyak._core.tensors import T
from polyak.errors import CheckpointError, ConfigError

EMAOf: TypeAlias = PersistentEMA[Any, T]


def state_dict(ema: EMAOf[T]) -> State:
    """See ``PersistentEMA``."""
    state, averages = _state(ema, "state_dict"), ema._averages
    if ema._lent is None or not ema._lent.written:
        parameters = [e.name for e in averages.plan.having("average") if e.kind == "parameter"]
        tensors = [track.tensors[name] for track in ema.tracks.values() for name in parameters]
        ema._lent = LentTensors(tensors, averages.ops)
    return state.changed(averages.state_form(averages.plan)).to_dict()


def state_without_tensors(ema: EMAOf[Any]) -> State:
    """The state of an EMA, with names in place of tensors; see ``with_tensors``."""
    return without_tensors(_state(ema, "state_dict").to_dict())


def load_state_dict(ema: EMAOf[T], state: State, strict: bool) -> LoadReport:
    """See ``PersistentEMA``."""
    ema._refuse_while_swapped("load_state_dict")
    ema._sync_with_model()
    averages, theirs = ema._averages, EMAState[T].from_dict(state)
    plan, tracks = averages.with_room_for(theirs.averaged(), ema._clock.step)
    form = averages.state_form(plan)
    loaded, report = check(theirs, tracks, averages.copies, _settings(ema), ema._adaptive, averages.ops, form)
    if strict and report:
        raise CheckpointError(f"{report}. Nothing was loaded; strict=False loads what fits.")
    loaded = averages.local(loaded, plan)

    def take() -> None:
        ema._pace.close()
        averages.restore(loaded, plan, tracks)
        ema._clock, ema.run, ema._pending, ema._lent = loaded.clock, theirs.run, None, None
        ema._choice = loaded.choice or ema._choice

    finished(take)
    return report


def save(
    ema: EMAOf[Any],
    path: str | os.PathLike[str] | None,
    track: str | None,
    resumable: bool,
    max_shard_size: int | str | None,
    background: bool,
) -> Saving | None:
    """See ``PersistentEMA``."""
    ranks, ops = ema._averages.plan.ranks, ema._averages.ops
    if path is None and (ranks is None or ranks.is_first):
        raise ConfigError("path=None: only ranks other than the first, which write nothing, need no path.")
    content, stream = opened(
        ranks, partial(_content, ema, path, track, resumable, background), partial(_pieces, ema)
    )
    if not resumable and track != "raw":
        warn_if_mostly_initial(ema._averages.tracks, ema._track(track), "save", 3)
    to_file = partial(save_file, path or "", content, ops, max_shard_size, stream)
    write = writer(stream, to_file, content, path)
    if not background:
        return write()
    return save_in_background(ema, path or "the file of another rank", write)


def load(ema: EMAOf[Any], path: str | os.PathLike[str], strict: bool) -> LoadReport:
    """See ``PersistentEMA``."""
    ema._sync_with_model()
    averages, plan = ema._averages, ema._averages.plan
    state = read_state(path, averages.ops, plan.placed(), averages.state_form(plan))
    return load_state_dict(ema, state, strict)


def capture(ema: EMAOf[T], track: str, dtype: str) -> Captured[T]:
    """A copy of a track for an archive, rounded to ``dtype`` and without tensors that never change.

    Args:
        ema: of either framework. If it is sharded, each rank calls this and has its pieces.
        track: its name; "raw" for the model's own weights, which are copied exactly.
        dtype: "float32", "float16" or "bfloat16".

    Raises:
        SwapError: the model holds an average now.
        CheckpointError: a rank of a sharded average was lost or has another step.
    """
    ranks, ops = ema._averages.plan.ranks, ema._averages.ops
    copied = partial(_copied, ema, track, dtype)
    if ranks is None:
        return Captured(copied(), ops)
    made: list[Content[T]] = []

    def wide() -> list[str]:
        made.append(copied())
        return wide_pieces(made[0], ops) if dtype == "float16" and track != "raw" else []

    names: list[str] = ranks.agree(wide, lambda named: sorted({n for names in named.values() for n in names}))
    content = widened(made[0], ema._track(track), names, ops) if names else made[0]
    content, stream = opened(ranks, lambda: content, partial(_pieces, ema))
    return Captured(content, ops, stream)


def _state(ema: EMAOf[T], verb: str) -> EMAState[T]:
    ema._refuse_while_swapped(verb)
    ema._notice_unseen_steps()
    averages = ema._averages
    return EMAState(
        settings=_settings(ema),
        skipped=averages.updater.skipped(),
        tracks={name: TrackState[T].of(track) for name, track in ema.tracks.items()},
        copies=dict(averages.copies),
        stored=stored_of(averages.copies),
        frozen=[entry.name for entry in averages.plan.frozen()],
        run=ema.run,
        clock=ema._clock,
        observed=None if ema._adaptive is None else (ema._adaptive, ema._choice),
    )


def _settings(ema: EMAOf[Any]) -> dict[str, int]:
    return {"every": ema.every, "start": ema.start, "seed": ema._seed}


def _content(
    ema: EMAOf[T], path: str | os.PathLike[str] | None, track: str | None, resumable: bool, copy: bool
) -> Content[T]:
    if path is not None:
        check_name(path)
    ema._refuse_while_swapped("save")
    ema._notice_unseen_steps()
    wait_for_last(ema)
    ema._sync_with_model()
    moment, averages = partial(_moment, ema), ema._averages
    begun = moment()
    if resumable:
        content = packed(_state(ema, "save"), averages.plan.placed())
    else:
        chosen = None if track == "raw" else ema._track(track)
        content = weights_of(averages, chosen, ema._clock.step, ema.run)
    check = unchanged_check(content.tensors, averages.ops, begun, moment)
    if not copy:
        return replace(content, check=check)
    copies = host_copies(content.tensors, averages.ops)
    check()
    return replace(content, tensors=copies)


def _pieces(ema: EMAOf[T], content: Content[T]) -> Report:
    pieces = content.pieces, content.squares
    return report_of_pieces(ema._averages, ema.step, ema._seed, content.tensors, *pieces)


def _copied(ema: EMAOf[T], track: str, dtype: str) -> Content[T]:
    ema._refuse_while_swapped("capture")
    ema._sync_with_model()
    moment, averages = partial(_moment, ema), ema._averages
    begun = moment()
    chosen = None if track == "raw" else ema._track(track)
    held = {entry.name: entry.live for entry in averages.plan.entries.values()}
    check = unchanged_check(held if chosen is None else chosen.tensors, averages.ops, begun, moment)
    if chosen is None:
        content = captured_model(averages, ema._clock.step, ema.run)
    else:
        content = captured_track(averages, chosen, ema._clock.step, ema.run, dtype)
    check()
    return content


def _moment(ema: EMAOf[Any]) -> int | None:
    """The last step that was averaged; None during an update."""
    return ema._pace.clock.step if ema._pending is None else None
