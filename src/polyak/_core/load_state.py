"""Loading a state: compared with an EMA first, then applied, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

from polyak._core.clock import Clock
from polyak._core.load_report import LoadReport
from polyak._core.state_dict import EMAState, Stored, TimelineState, TrackState, refusing_malformed
from polyak._core.tensors import T, TensorOps, alike
from polyak._core.timeline import Timeline
from polyak._core.track import ALL, Track, timelines_of
from polyak.errors import CheckpointError
from polyak.schedules import Adaptive, Decay, History, Profile, Run, compose
from polyak.schedules.adaptive import Choice
from polyak.schedules.decay import Custom, Unit, decay_in_file


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A state that was checked against an EMA and is not applied yet.

    tracks: the EMA's, with the state's history and without its tensors.
    clock: the state's, in the units of these tracks.
    choice: the state's, if made by the EMA's own rule.
    joining: tensors that were frozen in the state and are averaged now: they join with their current values.
    """

    state: EMAState[T]
    tracks: Mapping[str, Track[T]]
    clock: Clock
    joining: Collection[str]
    choice: Choice | None


def check(
    state: EMAState[T],
    tracks: Mapping[str, Track[T]],
    copies: Mapping[str, T],
    settings: Mapping[str, int],
    rule: Adaptive | None,
    ops: TensorOps[T],
    form: Callable[[str, T], T],
) -> tuple[Loaded[T], LoadReport]:
    """Check a state against an EMA's tracks, copied buffers, settings and rule, and report differences.

    A state that passes cannot fail later, so loading is all or nothing. ``form`` is that of the EMA's tensors
    in a state, by their names.

    Raises:
        CheckpointError: the state is malformed.
    """
    report = LoadReport()
    with refusing_malformed():
        theirs = state.settings
        report.schedules += [f"{k}={v} (state: {theirs[k]})" for k, v in settings.items() if theirs[k] != v]
        their_rule, choice = state.observed or (None, None)
        if their_rule != rule:
            report.schedules.append(f"{rule or 'no Adaptive'} (state: {their_rule or 'no Adaptive'})")
            choice = None
        report.missing += [f"track {name}" for name in tracks if name not in state.tracks]
        report.unexpected += [f"track {name}" for name in state.tracks if name not in tracks]
        joining: set[str] = set()
        restored: dict[str, Track[T]] = {}
        for name, track in tracks.items():
            if name in state.tracks:
                where = f"{name}/" if len(tracks) > 1 else ""
                left = _compare_track(track, state.tracks[name], where, report, ops, form, state.frozen)
                joining |= left & set(state.frozen)
                # The state's history does not apply to a tensor it does not contain: such a tensor joins now.
                joined = dict.fromkeys(left, state.clock.step)
                restored[name] = _restored(track, state.tracks[name], state.clock.step, joined, report)
        _compare(copies, state.copies, state.stored, "", report, ops, form)
        units: set[Unit] = {timeline.unit for timeline in timelines_of(tracks.values())}
        elapsed = {unit: state.clock.elapsed.get(unit, 0) for unit in units}
        return Loaded(state, restored, Clock.of(*state.clock[:2], elapsed), joining, choice), report


def _restored(
    track: Track[T], state: TrackState[T], step: int, joining: Mapping[str, int], report: LoadReport
) -> Track[T]:
    patterns = dict(track.patterns)
    if state.timelines.keys() == track.timelines.keys():  # a tensor that was renamed has kept its pattern
        patterns |= {n: p for n, p in state.patterns.items() if n in patterns and n not in joining}
    track, timelines = replace(track, patterns=patterns), dict[str, Timeline]()
    for pattern, timeline in track.timelines.items():
        label = f"{track.name}/{pattern}" if track.by_name else track.name
        found = _pattern_in_state(track, pattern, state, joining)
        if found is None:
            report.missing.append(f"the schedule {label}")
            timelines[pattern] = Timeline(timeline.decay)
            timelines[pattern].restart(step)
        else:
            timelines[pattern] = _continued(label, timeline.decay, state.timelines[found], report)
    return replace(track, timelines=timelines, joined={**state.joined, **joining})


def _pattern_in_state(
    track: Track[T], pattern: str, state: TrackState[T], joining: Collection[str]
) -> str | None:
    """The pattern under which a state has the history of this pattern's tensors; of no tensors, its own.

    Raises:
        CheckpointError: there they have several histories.
    """
    mine = [name for name in track.tensors if track.pattern_of(name) == pattern and name not in joining]
    found = {state.patterns.get(name, ALL): name for name in mine if name in state.stored}
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise CheckpointError(
            f"track {track.name!r}: {first} and {second} have the decays of {one!r} and {other!r} in the "
            f"state, and one decay, of {pattern!r}, in this EMA, which has one history for both. Give this "
            "EMA a pattern for each of those in the state."
        )
    return next(iter(found), pattern if pattern in state.timelines else None)


def _continued(label: str, mine: Decay, state: TimelineState, report: LoadReport) -> Timeline:
    """The state's history, to be continued with this EMA's decay."""
    decay = decay_in_file(state.decay)
    if not _same(decay, mine):
        report.schedules.append(f"{label}: {mine} (state: {decay})")
    profile = Profile.from_json(state.profile)
    if len(profile.terms) != 1:
        raise CheckpointError(
            f"track {label!r}: its profile has {len(profile.terms)} terms; a track has one."
        )
    _refuse_unknown(label, mine, [decay, *(run.decay for run in profile.terms[0][1])])
    # With the track's own decay object the next update extends the last run instead of starting another.
    runs = [run._replace(decay=mine) if _same(run.decay, mine) else run for run in profile.terms[0][1]]
    if not 0 <= state.beta <= 1:
        raise CheckpointError(f"track {label!r}: the state says beta={state.beta}: must lie in [0, 1].")
    report.schedules += _another_function(label, mine, runs, state.beta)
    return Timeline(mine, state.clock, state.beta, History(runs, profile.within))


def _refuse_unknown(label: str, mine: Decay, decays: Sequence[Decay]) -> None:
    """A state contains no functions, which strict=False accepts; a class has to be imported."""
    for decay in decays:
        if not (decay.known or _same(decay, mine) or decay.to_config()["kind"] == "Custom"):
            raise CheckpointError(
                f"track {label!r}: its decay is {decay}. Import the module that defines it first."
            )


def _same(theirs: Decay, mine: Decay) -> bool:
    """Whether two decays are the same; a file contains only the names of functions."""
    return theirs == mine or theirs.to_config() == mine.to_config()


def _another_function(label: str, mine: Decay, runs: Sequence[Run], beta: float) -> list[str]:
    """A different function of the same name is detected by the last decay it gave."""
    if not isinstance(mine, Custom) or not runs or runs[-1].decay != mine:
        return []
    last = runs[-1]
    now = compose(mine, last.clock + (last.count - 1) * last.advance, last.advance)
    if now == beta:
        return []
    return [f"{label}: {mine} gives {now:.9g} where the state's function of that name gave {beta:.9g}"]


def _compare_track(
    track: Track[T],
    state: TrackState[T],
    where: str,
    report: LoadReport,
    ops: TensorOps[T],
    form: Callable[[str, T], T],
    frozen: Collection[str],
) -> set[str]:
    """As ``_compare``; each residual must belong to an average, in one of the two forms."""
    left = _compare(track.tensors, state.tensors, state.stored, where, report, ops, form, frozen)
    for name, low in state.residuals.items():
        average = state.tensors[name]
        if not alike(low, average) or not ops.two_parts(average, low):
            raise CheckpointError(
                f"{name} is {average.dtype} {tuple(average.shape)} with {low.dtype} {tuple(low.shape)} below "
                "it: must be bfloat16 with int8 or float32 with float32, of one shape, and hold values."
            )
        if state.stored[name][1:] not in ([], (), [str(low.dtype)]):
            raise CheckpointError(
                f"{name} was stored with {state.stored[name][1]} below it and read into {low.dtype}, which "
                "another way of storing averages uses. Load it into an EMA of its dtype= and compensated=."
            )
    halved = {name for name, dtypes in state.stored.items() if len(dtypes) > 1}
    unequal = track.residuals.keys() ^ (halved | state.residuals.keys())
    parts = ("one part to two", "two parts to one")
    report.converted += [
        f"{where}{name} from {parts[name not in track.residuals]}"
        for name in track.tensors
        if name in unequal
    ]
    return left


def _compare(
    mine: Mapping[str, T],
    theirs: Mapping[str, Any],
    stored: Stored,
    where: str,
    report: LoadReport,
    ops: TensorOps[T],
    form: Callable[[str, T], T],
    frozen: Collection[str] = (),
) -> set[str]:
    """Report differences except of frozen tensors; returns the names of tensors that are not loaded."""
    left = {name for name in mine if name not in theirs or name not in stored}
    report.missing += [f"{where}{name}" for name in mine if name in left and name not in frozen]
    report.unexpected += [f"{where}{name}" for name in {**stored, **theirs} if name not in mine]
    for name in [name for name in mine if name not in left]:
        a, b = form(name, mine[name]), theirs[name]
        ops.refuse_unlike(f"{where}{name}", b, a)
        if not alike(a, b):
            shapes = tuple(b.shape), tuple(a.shape)
            given, wanted = (b.dtype, a.dtype) if shapes[0] == shapes[1] else shapes
            report.resized.append(f"{where}{name} {given} for {wanted}")
            left.add(name)
        elif others := {*stored[name][:1], str(b.dtype)} - {str(a.dtype)}:
            report.converted.append(f"{where}{name} {others.pop()} to {a.dtype}")
    return left
