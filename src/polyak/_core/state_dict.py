"""All of an EMA as plain values and tensors, and back: what resuming exactly takes.

The state holds nothing but dicts, lists, strings, numbers and tensors, so ``torch.save`` writes it and
``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias

from polyak._core.tensors import T, TensorOps, alike
from polyak._core.track import Track
from polyak.errors import CheckpointError
from polyak.schedules import Decay, History, Profile
from polyak.schedules.decay import Unit

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


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A state read and checked, nothing of it applied yet.

    skipped: updates in which some θ was not finite, and in how many of them each tensor was.
    joining: tensors that were frozen there and are averaged here: they join with the values θ has now.
    """

    tracks: dict[str, Track[T]]
    step: int
    waiting: int
    elapsed: dict[Unit, int]
    run: str
    skipped: tuple[int, dict[str, int]]
    joining: Collection[str]


def to_state(
    tracks: Mapping[str, Track[T]],
    copies: Mapping[str, T],
    frozen: Sequence[str],
    skipped: tuple[int, dict[str, int]],
    settings: Mapping[str, int],
) -> State:
    """All of an EMA but where it stands in time; the tensors are its own, not copies."""
    return {
        "format": FORMAT,
        **settings,
        "skipped": list(skipped),
        "tracks": {name: track_state(track) for name, track in tracks.items()},
        "copies": dict(copies),
        **({"frozen": list(frozen)} if frozen else {}),
    }


def averaged_in(state: State) -> set[str]:
    """The names that a state holds averages of; none if it is malformed, which ``read`` then says."""
    try:
        return {str(name) for track in state["tracks"].values() for name in track["tensors"]}
    except (KeyError, TypeError, AttributeError):
        return set()


def track_state(track: Track[Any]) -> State:
    """One track: schedule, time, history and tensors."""
    return {
        "decay": track.decay.to_config(),
        "clock": track.clock,
        "beta": track.beta,
        "joined": dict(track.joined),
        "profile": track.profile.to_json(),
        "tensors": dict(track.tensors),
        "lows": dict(track.residuals),
    }


def read(
    state: State,
    tracks: Mapping[str, Track[T]],
    copies: Mapping[str, T],
    settings: Mapping[str, int],
    tensors: TensorOps[T],
) -> tuple[Loaded[T], LoadReport]:
    """Check a state against an EMA's tracks, copied buffers and settings, and say what differs.

    What passes here cannot fail later, so that loading is all or nothing.

    Raises:
        CheckpointError: the state is malformed.
    """
    report = LoadReport()
    try:
        return _read(state, tracks, copies, settings, tensors, report), report
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the state is not one of polyak.EMA: {error!r}. Nothing was loaded."
        ) from error


def _read(
    state: State,
    tracks: Mapping[str, Track[T]],
    copies: Mapping[str, T],
    settings: Mapping[str, int],
    tensors: TensorOps[T],
    report: LoadReport,
) -> Loaded[T]:
    if state["format"] != FORMAT:
        raise CheckpointError(f"the state has format {state['format']}; this polyak reads {FORMAT}.")
    theirs = dict(state["tracks"])
    report.schedules += [f"{k}={v} (state: {state[k]})" for k, v in settings.items() if state[k] != v]
    report.missing += [f"track {name}" for name in tracks if name not in theirs]
    report.unexpected += [f"track {name}" for name in theirs if name not in tracks]
    step = _count("step", state["step"])
    frozen = set(map(str, state.get("frozen", ())))
    joining: set[str] = set()
    restored: dict[str, Track[T]] = {}
    for name, track in tracks.items():
        if name in theirs:
            where = f"{name}/" if len(tracks) > 1 else ""
            left = _compare(track.tensors, dict(theirs[name]["tensors"]), where, report, tensors, frozen)
            joining |= frozen.intersection(left)
            _check_lows(theirs[name], tensors)
            unequal = track.residuals.keys() ^ dict(theirs[name].get("lows", {})).keys()
            parts = ("one part to two", "two parts to one")
            report.converted += [
                f"{where}{key} from {parts[key not in track.residuals]}"
                for key in track.tensors
                if key in unequal
            ]
            # The state's history is not that of a tensor it does not hold: such a tensor joins now.
            restored[name] = _restored(track, theirs[name], dict.fromkeys(left, step), report)
    _compare(copies, dict(state["copies"]), "", report, tensors)
    updates, named = state["skipped"]
    elapsed = _counts(state["elapsed"])
    return Loaded(
        tracks=restored,
        step=step,
        waiting=_count("waiting", state["waiting"]),
        elapsed={track.decay.unit: elapsed.get(track.decay.unit, 0) for track in tracks.values()},
        run=str(state["run"]),
        skipped=(_count("skipped", updates), _counts(named)),
        joining=joining,
    )


def fill(mine: Mapping[str, T], residuals: Mapping[str, T], state: State, tensors: TensorOps[T]) -> None:
    """Copy what matches in name, shape and kind; bit by bit where it is kept in the same form."""
    theirs, their_lows = state["tensors"], state.get("lows", {})
    for name in mine.keys() & theirs.keys():
        low, other = residuals.get(name), their_lows.get(name)
        if not alike(mine[name], theirs[name]):
            continue
        if low is not None and other is not None and low.dtype == other.dtype:
            tensors.overwrite(mine[name], theirs[name])
            tensors.overwrite(low, other)
        else:
            tensors.put(mine[name], low, tensors.value_of(theirs[name], other))


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CheckpointError(f"the state says {name}={value!r}: must be a whole number, at least 0.")
    return value


def _counts(named: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): _count(str(name), value) for name, value in named.items()}


def _restored(track: Track[T], state: State, joining: dict[str, int], report: LoadReport) -> Track[T]:
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
        history=History(runs, profile.within),
    )


def _check_lows(state: State, tensors: TensorOps[Any]) -> None:
    """Each low part must belong to an average, in one of the two forms there are."""
    for name, low in dict(state.get("lows", {})).items():
        average = state["tensors"][name]
        if not alike(low, average) or not tensors.two_parts(average, low):
            raise CheckpointError(
                f"{name} is {average.dtype} {tuple(average.shape)} with {low.dtype} {tuple(low.shape)} below "
                "it: must be bfloat16 with int8 or float32 with float32, of one shape, and hold values."
            )


def _compare(
    mine: Mapping[str, T],
    theirs: Mapping[str, Any],
    where: str,
    report: LoadReport,
    tensors: TensorOps[T],
    frozen: Collection[str] = (),
) -> list[str]:
    """Report what differs and was not frozen; the names returned are those that keep their own tensor."""
    left = [name for name in mine if name not in theirs]
    report.missing += [f"{where}{name}" for name in left if name not in frozen]
    report.unexpected += [f"{where}{name}" for name in theirs if name not in mine]
    for name in [name for name in mine if name in theirs]:
        a, b = mine[name], theirs[name]
        tensors.refuse_unlike(f"{where}{name}", b, a)
        if not alike(a, b):
            shapes = tuple(b.shape), tuple(a.shape)
            given, wanted = (b.dtype, a.dtype) if shapes[0] == shapes[1] else shapes
            report.resized.append(f"{where}{name} {given} for {wanted}")
            left.append(name)
        elif a.dtype != b.dtype:
            report.converted.append(f"{where}{name} {b.dtype} to {a.dtype}")
    return left
