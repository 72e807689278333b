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
from polyak.torch.engines.tally import Tally
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
            "resized": "of another shape, left as they are",
        }
        return "; ".join(f"{', '.join(vars(self)[k])}: {what}" for k, what in lines.items() if vars(self)[k])


class Loaded(NamedTuple):
    """A state read and checked, nothing of it applied yet."""

    tracks: dict[str, Track]
    step: int
    waiting: int
    elapsed: dict[str, int]
    run: str
    tally: Tally


def track_state(track: Track) -> State:
    """One track: schedule, time, history and tensors."""
    return {
        "decay": track.decay.to_config(),
        "clock": track.clock,
        "beta": track.beta,
        "joined": dict(track.joined),
        "profile": track.profile.to_json(),
        "tensors": dict(track.tensors),
    }


def read(
    state: State,
    tracks: Mapping[str, Track],
    copies: Mapping[str, Tensor],
    settings: Mapping[str, int],
    report: LoadReport,
) -> Loaded:
    """Check a state against an EMA's tracks, copied buffers and settings; differences go into ``report``."""
    if state["format"] != FORMAT:
        raise CheckpointError(f"the state has format {state['format']}; this polyak reads {FORMAT}.")
    theirs = state["tracks"]
    report.schedules += [f"{k}={v} (state: {state[k]})" for k, v in settings.items() if state[k] != v]
    report.missing += [f"track {name}" for name in tracks if name not in theirs]
    report.unexpected += [f"track {name}" for name in theirs if name not in tracks]
    restored = {
        name: _restored(track, theirs[name], report) for name, track in tracks.items() if name in theirs
    }
    for name in restored:
        _compare(tracks[name].tensors, theirs[name]["tensors"], f"{name}/" if len(tracks) > 1 else "", report)
    _compare(copies, state["copies"], "", report)
    return Loaded(
        tracks=restored,
        step=int(state["step"]),
        waiting=int(state["waiting"]),
        elapsed={str(unit): int(count) for unit, count in state["elapsed"].items()},
        run=str(state["run"]),
        tally=Tally(int(state["skipped"][0]), {str(k): int(n) for k, n in state["skipped"][1].items()}),
    )


def fill(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Copy what matches in name and shape."""
    with torch.no_grad():
        for name in mine.keys() & theirs.keys():
            if mine[name].shape == theirs[name].shape:
                mine[name].copy_(theirs[name])


def _restored(track: Track, state: State, report: LoadReport) -> Track:
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
    return replace(
        track,
        clock=int(state["clock"]),
        beta=float(state["beta"]),
        joined={str(name): int(step) for name, step in state["joined"].items()},
        history=History(runs),
    )


def _compare(mine: Mapping[str, Tensor], theirs: Mapping[str, Any], where: str, report: LoadReport) -> None:
    report.missing += [f"{where}{name}" for name in mine if name not in theirs]
    report.unexpected += [f"{where}{name}" for name in theirs if name not in mine]
    for name in [name for name in mine if name in theirs]:
        a, b = mine[name], theirs[name]
        if not isinstance(b, Tensor):
            raise CheckpointError(f"{where}{name} is a {type(b).__name__}, not a tensor.")
        if a.shape != b.shape:
            report.resized.append(f"{where}{name} {tuple(b.shape)} for {tuple(a.shape)}")
        elif a.dtype != b.dtype:
            report.converted.append(f"{where}{name} {b.dtype} to {a.dtype}")
