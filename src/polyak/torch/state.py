"""All of an EMA as plain values and tensors, and back: what resuming exactly takes.

The state holds nothing but dicts, lists, strings, numbers and tensors, so ``torch.save`` writes it and
``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from polyak.errors import CheckpointError
from polyak.rules import Decay, History, Profile
from polyak.rules.decay import Unit
from polyak.torch.engines.tally import Tally
from polyak.torch.storage import TWO_PARTS, put, value_of
from polyak.torch.track import Track

State: TypeAlias = dict[str, Any]
FORMAT = 1


@dataclass
class LoadReport:
    """What ``load_state_dict(strict=False)`` did about what did not match."""

    schedules: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])
    converted: list[str] = field(default_factory=list[str])
    resized: list[str] = field(default_factory=list[str])

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        lines = {
            "schedules": "kept this EMA's own",
            "missing": "not in the state, left as they are",
            "unexpected": "in the state only, ignored",
            "converted": "of another dtype, converted",
            "resized": "of another shape or kind, left as they are",
        }
        return "; ".join(f"{', '.join(vars(self)[k])}: {what}" for k, what in lines.items() if vars(self)[k])


class Loaded(NamedTuple):
    """A state read and checked, nothing of it applied yet."""

    tracks: dict[str, Track]
    step: int
    waiting: int
    elapsed: dict[Unit, int]
    run: str
    tally: Tally


def whole(
    tracks: Mapping[str, Track], copies: Mapping[str, Tensor], tally: Tally, settings: Mapping[str, int]
) -> State:
    """All of an EMA but where it stands in time; the tensors are its own, not copies."""
    return {
        "format": FORMAT,
        **settings,
        "skipped": list(tally.read()),
        "tracks": {name: track_state(track) for name, track in tracks.items()},
        "copies": dict(copies),
    }


def track_state(track: Track) -> State:
    """One track: schedule, time, history and tensors."""
    return {
        "decay": track.decay.to_config(),
        "clock": track.clock,
        "beta": track.beta,
        "joined": dict(track.joined),
        "profile": track.profile.to_json(),
        "tensors": dict(track.tensors),
        "lows": dict(track.lows),
    }


def read(
    state: State, tracks: Mapping[str, Track], copies: Mapping[str, Tensor], settings: Mapping[str, int]
) -> tuple[Loaded, LoadReport]:
    """Check a state against an EMA's tracks, copied buffers and settings, and say what differs.

    What passes here cannot fail later, so that loading is all or nothing.

    Raises:
        CheckpointError: the state is malformed.
    """
    report = LoadReport()
    try:
        return _read(state, tracks, copies, settings, report), report
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the state is not one of polyak.EMA: {error!r}. Nothing was loaded."
        ) from error


def _read(
    state: State,
    tracks: Mapping[str, Track],
    copies: Mapping[str, Tensor],
    settings: Mapping[str, int],
    report: LoadReport,
) -> Loaded:
    if state["format"] != FORMAT:
        raise CheckpointError(f"the state has format {state['format']}; this polyak reads {FORMAT}.")
    theirs = dict(state["tracks"])
    report.schedules += [f"{k}={v} (state: {state[k]})" for k, v in settings.items() if state[k] != v]
    report.missing += [f"track {name}" for name in tracks if name not in theirs]
    report.unexpected += [f"track {name}" for name in theirs if name not in tracks]
    step = _count("step", state["step"])
    restored: dict[str, Track] = {}
    for name, track in tracks.items():
        if name in theirs:
            where = f"{name}/" if len(tracks) > 1 else ""
            left = _compare(track.tensors, dict(theirs[name]["tensors"]), where, report)
            _check_lows(theirs[name])
            unequal = track.lows.keys() ^ dict(theirs[name].get("lows", {})).keys()
            parts = ("one part to two", "two parts to one")
            report.converted += [
                f"{where}{key} from {parts[key not in track.lows]}" for key in track.tensors if key in unequal
            ]
            # The state's history is not that of a tensor it does not hold: such a tensor joins now.
            restored[name] = _restored(track, theirs[name], dict.fromkeys(left, step), report)
    _compare(copies, dict(state["copies"]), "", report)
    updates, tensors = state["skipped"]
    elapsed = _counts(state["elapsed"])
    return Loaded(
        tracks=restored,
        step=step,
        waiting=_count("waiting", state["waiting"]),
        elapsed={track.decay.unit: elapsed.get(track.decay.unit, 0) for track in tracks.values()},
        run=str(state["run"]),
        tally=Tally(_count("skipped", updates), _counts(tensors)),
    )


def fill(mine: Mapping[str, Tensor], lows: Mapping[str, Tensor], state: State) -> None:
    """Copy what matches in name, shape and kind; bit by bit where it is kept in the same form."""
    theirs, their_lows = state["tensors"], state.get("lows", {})
    with torch.no_grad():
        for name in mine.keys() & theirs.keys():
            low, other = lows.get(name), their_lows.get(name)
            if not _fits(mine[name], theirs[name]):
                continue
            if low is not None and other is not None and low.dtype == other.dtype:
                mine[name].copy_(theirs[name])
                low.copy_(other)
            else:
                put(mine[name], low, value_of(theirs[name], other).to(mine[name].device))


def _fits(mine: Tensor, theirs: Tensor) -> bool:
    return mine.shape == theirs.shape and mine.is_complex() == theirs.is_complex()


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CheckpointError(f"the state says {name}={value!r}: must be a whole number, at least 0.")
    return value


def _counts(named: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): _count(str(name), value) for name, value in named.items()}


def _restored(track: Track, state: State, joining: dict[str, int], report: LoadReport) -> Track:
    decay = Decay.from_config(state["decay"])
    if decay != track.decay:
        report.schedules.append(f"{track.name}: {track.decay} (state: {decay})")
    profile = Profile.from_json(state["profile"])
    if len(profile.terms) != 1:
        raise CheckpointError(
            f"track {track.name!r}: its profile has {len(profile.terms)} terms; a track has one."
        )
    # With the track's own decay object the next update extends the last run instead of opening another.
    runs = [
        run._replace(decay=track.decay) if run.decay == track.decay else run for run in profile.terms[0][1]
    ]
    beta = float(state["beta"])
    if not 0 <= beta <= 1:
        raise CheckpointError(f"track {track.name!r}: the state says beta={beta}: must lie in [0, 1].")
    return replace(
        track,
        clock=_count("clock", state["clock"]),
        beta=beta,
        joined=_counts(state["joined"]) | joining,
        history=History(runs),
    )


def _check_lows(state: State) -> None:
    """Each low part must belong to an average, in one of the two forms there are."""
    for name, low in dict(state.get("lows", {})).items():
        average = state["tensors"][name]
        alike = low.shape == average.shape and (average.dtype, low.dtype) in TWO_PARTS
        if not alike or low.is_meta or low.layout != average.layout:
            raise CheckpointError(
                f"{name} is {average.dtype} {tuple(average.shape)} with {low.dtype} {tuple(low.shape)} below "
                "it: must be bfloat16 with int8 or float32 with float32, of one shape, and hold values."
            )


def _compare(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Any], where: str, report: LoadReport
) -> list[str]:
    """Report what differs; the names returned are those that keep their own tensor."""
    left = [name for name in mine if name not in theirs]
    report.missing += [f"{where}{name}" for name in left]
    report.unexpected += [f"{where}{name}" for name in theirs if name not in mine]
    for name in [name for name in mine if name in theirs]:
        a, b = mine[name], theirs[name]
        if not isinstance(b, Tensor):
            raise CheckpointError(f"{where}{name} is a {type(b).__name__}, not a tensor.")
        if b.is_meta or b.layout != a.layout:
            raise CheckpointError(
                f"{where}{name} is {b.layout} on {b.device}: must be {a.layout} and hold values."
            )
        if not _fits(a, b):
            given, wanted = (b.dtype, a.dtype) if a.shape == b.shape else (tuple(b.shape), tuple(a.shape))
            report.resized.append(f"{where}{name} {given} for {wanted}")
            left.append(name)
        elif a.dtype != b.dtype:
            report.converted.append(f"{where}{name} {b.dtype} to {a.dtype}")
    return left
