"""The state of an EMA as one text and tensors, from which it resumes exactly.

``{"polyak": text, "tracks": {track: {"tensors": …, "lows": …}}, "copies": …}``: tensors by name, and all else
as JSON in the text. ``torch.load(weights_only=True)`` reads it, and so does ``torch.distributed.checkpoint``.
That asks the saved state for each value of the present one, so values that come and go, such as the names of
skipped tensors, are inside the text, and no dict is empty. It casts tensors to the dtypes of the present ones
and leaves out those that are not present, both silently, so the text lists what was stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeAlias

from polyak._core.clock import Clock
from polyak._core.tensors import T, TensorLike
from polyak._core.timeline import Timeline
from polyak._core.track import ALL, Track
from polyak._core.updater import Skipped
from polyak.errors import CheckpointError
from polyak.schedules import Adaptive, ByName, Decay
from polyak.schedules.adaptive import Choice, from_state, to_state
from polyak.schedules.decay import decay_in_file

State: TypeAlias = dict[str, Any]
Stored: TypeAlias = Mapping[str, Sequence[str]]  # the dtypes of each tensor's parts, by name
FORMAT = 1
TEXT = "polyak"  # the key of the text


@dataclass(frozen=True)
class TimelineState:
    """One schedule in use. ``decay`` and ``profile`` are as ``to_config`` and ``to_json`` write them."""

    decay: Mapping[str, Any]
    clock: int
    beta: float
    profile: str

    @classmethod
    def of(cls, timeline: Timeline) -> TimelineState:
        decay, profile = timeline.decay.to_config(), timeline.profile.to_json()
        return cls(decay, timeline.clock, timeline.beta, profile)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> TimelineState:
        clock, beta = _count("clock", state["clock"]), float(state["beta"])
        return cls(dict(state["decay"]), clock, beta, state["profile"])


@dataclass(frozen=True)
class TrackState(Generic[T]):
    """One track.

    timelines: by pattern; "*" for all tensors.
    patterns: of each tensor, if its decay is by name.
    stored: what was saved; ``tensors`` can lack some of it, and hold others that were not loaded.
    """

    timelines: Mapping[str, TimelineState]
    patterns: Mapping[str, str]
    joined: Mapping[str, int]
    tensors: Mapping[str, T]
    residuals: Mapping[str, T]
    stored: Stored

    @classmethod
    def of(cls, track: Track[T]) -> TrackState[T]:
        timelines = {pattern: TimelineState.of(one) for pattern, one in track.timelines.items()}
        tensors, residuals = dict(track.tensors), dict(track.residuals)
        stored = stored_of(tensors, residuals)
        patterns, joined = dict(track.patterns), dict(track.joined)
        return cls(timelines, patterns, joined, tensors, residuals, stored)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> TrackState[T]:
        tensors, residuals = dict(state["tensors"]), dict(state.get("lows", {}))
        timelines = state.get("timelines", {ALL: state})
        patterns = dict(state.get("patterns", {}))
        if lost := [pattern for pattern in patterns.values() if pattern not in timelines]:
            raise CheckpointError(f"the state has tensors of the pattern {lost[0]!r}, and no schedule of it.")
        return cls(
            timelines={str(name): TimelineState.from_dict(one) for name, one in timelines.items()},
            patterns=patterns,
            joined=_counts(state["joined"]),
            tensors=tensors,
            residuals=residuals,
            stored=state.get("stored", dict.fromkeys(tensors, ())),
        )

    def values(self) -> State:
        """All but the tensors and their dtypes."""
        if self.patterns:
            timelines = {pattern: dict(vars(one)) for pattern, one in self.timelines.items()}
            return {"timelines": timelines, "patterns": self.patterns, "joined": self.joined}
        decay, clock, beta, profile = vars(self.timelines[ALL]).values()
        return {"decay": decay, "clock": clock, "beta": beta, "joined": self.joined, "profile": profile}

    def decay(self) -> Decay | ByName:
        """The decay it was made with; ``Unknown`` ones where they cannot be computed here."""
        decays = {pattern: decay_in_file(one.decay) for pattern, one in self.timelines.items()}
        return ByName(decays) if self.patterns else decays[ALL]


@dataclass(frozen=True)
class EMAState(Generic[T]):
    """All of an EMA; the tensors are its own, not copies.

    settings: every, start and seed.
    frozen: parameters that would be averaged if they were trained.
    observed: the rule that chooses among the tracks, and its choice so far.
    """

    settings: Mapping[str, int]
    skipped: Skipped
    tracks: Mapping[str, TrackState[T]]
    copies: Mapping[str, T]
    stored: Stored
    frozen: Collection[str]
    run: str
    clock: Clock
    observed: tuple[Adaptive, Choice] | None = None

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> EMAState[T]:
        """The inverse of ``to_dict``.

        Raises:
            CheckpointError: it is malformed.
        """
        with refusing_malformed():
            state = opened(state)
            copies = dict(state["copies"])
            if state["format"] != FORMAT:
                raise CheckpointError(f"the state has format {state['format']}; this polyak reads {FORMAT}.")
            updates, named = state["skipped"]
            step, waiting = _count("step", state["step"]), _count("waiting", state["waiting"])
            return cls(
                settings={name: state[name] for name in ("every", "start", "seed")},
                skipped=(_count("skipped", updates), _counts(named)),
                tracks={name: TrackState[T].from_dict(track) for name, track in state["tracks"].items()},
                copies=copies,
                stored=state.get("stored", dict.fromkeys(copies, ())),
                frozen=set(map(str, state.get("frozen", ()))),
                run=str(state["run"]),
                clock=Clock.of(step, waiting, _counts(state["elapsed"])),
                observed=from_state(state["adaptive"]) if "adaptive" in state else None,
            )

    def values(self) -> State:
        """All but the tensors and their dtypes."""
        return {
            "format": FORMAT,
            **self.settings,
            "skipped": list(self.skipped),
            **({"frozen": list(self.frozen)} if self.frozen else {}),
            **({"adaptive": to_state(*self.observed)} if self.observed else {}),
            "run": self.run,
            "step": self.clock.step,
            "waiting": self.clock.waiting,
            "elapsed": self.clock.elapsed,
            "tracks": {name: track.values() for name, track in self.tracks.items()},
        }

    def to_dict(self) -> State:
        """The text and the tensors."""
        values = self.values() | {"stored": self.stored}
        values["tracks"] = {
            name: track.values() | {"stored": track.stored} for name, track in self.tracks.items()
        }
        tracks = {
            name: {"tensors": track.tensors} | ({"lows": track.residuals} if track.residuals else {})
            for name, track in self.tracks.items()
        }
        text = json.dumps(values, separators=(",", ":"))
        return {TEXT: text, "tracks": tracks} | ({"copies": self.copies} if self.copies else {})

    def changed(self, change: Callable[[str, T], T | None]) -> EMAState[T]:
        """With ``change(name, tensor)`` in place of each tensor; without those of which it is None."""

        def each(tensors: Mapping[str, T]) -> dict[str, T]:
            made = {name: change(name, tensor) for name, tensor in tensors.items()}
            return {name: tensor for name, tensor in made.items() if tensor is not None}

        tracks = {
            name: replace(track, tensors=each(track.tensors), residuals=each(track.residuals))
            for name, track in self.tracks.items()
        }
        return replace(self, tracks=tracks, copies=each(self.copies))

    def averaged(self) -> set[str]:
        """The names of all tensors that some track averages."""
        return {str(name) for track in self.tracks.values() for name in track.tensors}


def opened(state: Mapping[str, Any]) -> State:
    """A state with the values beside the tensors, as older states and resumable files have them."""
    if TEXT not in state:
        return dict(state)
    values, tensors = json.loads(state[TEXT]), state["tracks"]
    tracks: State = {
        name: {"tensors": {}, **others, **tensors.get(name, {})} for name, others in values["tracks"].items()
    }
    return {**values, "tracks": tracks, "copies": state.get("copies", {})}


def without_tensors(state: State) -> State:
    """A state with the names of averages and copied buffers in their place: a module saves them itself.

    Low parts stay, since no module has them.
    """
    state = opened(state)
    tracks = {name: {**track, "tensors": list(track["tensors"])} for name, track in state["tracks"].items()}
    return {**state, "tracks": tracks, "copies": list(state["copies"])}


def with_tensors(state: State, saved: Mapping[str, Any]) -> State:
    """The inverse, from the tensors that the module saved.

    Raises:
        CheckpointError: the state is malformed.
    """

    def found(names: Collection[str]) -> dict[str, Any]:
        return {name: saved[name] for name in names if name in saved}  # what is missing, loading reports

    with refusing_malformed():
        tracks = {
            name: {**track, "tensors": found(track["tensors"])} for name, track in state["tracks"].items()
        }
        return {**state, "tracks": tracks, "copies": found(state["copies"])}


@contextmanager
def refusing_malformed() -> Generator[None]:
    """Convert any error of reading a malformed state into a CheckpointError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"the state is not that of a polyak.EMA: {error!r}. Nothing was loaded."
        ) from error


def stored_of(
    tensors: Mapping[str, TensorLike], residuals: Mapping[str, TensorLike] = MappingProxyType({})
) -> Stored:
    """The dtypes of these tensors and of their residuals, to be listed in a state."""

    def dtypes(name: str) -> list[str]:
        return [str(part[name].dtype) for part in (tensors, residuals) if name in part]

    return {name: dtypes(name) for name in tensors}


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise CheckpointError(f"the state says {name}={value!r}: must be a whole number, at least 0.")
    return value


def _counts(named: Mapping[Any, Any]) -> dict[Any, int]:
    return {str(name): _count(str(name), value) for name, value in named.items()}
