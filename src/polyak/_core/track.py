"""One average: its tensors, and their schedules with the histories from which profiles follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, NoReturn, TypeAlias

from polyak._core.averaged_module import AveragedModule
from polyak._core.tensor_map import TensorEntry
from polyak._core.tensors import T
from polyak._core.timeline import Timeline
from polyak.errors import ConfigError, PlanError
from polyak.schedules import Adaptive, ByName, Decay, History, Profile, Warmup, as_decay
from polyak.schedules.decay import DecayLike, warn_if_rate
from polyak.schedules.drawing import html, summary

AnyDecay: TypeAlias = DecayLike | ByName  # of one track
Decays: TypeAlias = AnyDecay | Mapping[str, AnyDecay] | Adaptive
# Its half-life grows with the run, about 0.69·t^⅔ steps, so the length of the run need not be known.
DEFAULT_DECAY = Warmup(0.9999)
ALL = "*"  # the pattern of a decay that is not by name


@dataclass(repr=False)
class Track(Generic[T]):
    """One of the averages of an ``EMA``.

    name: ``"average"`` unless several were named.
    _decay: the schedule, or one for each pattern, which ``decay`` reads.
    value_of: an average and its residual, as one tensor.
    tensors: averages by name, in the storage dtype.  residuals: their low parts, if any.
    joined: the step at which a tensor joined, for those added after the first step.
    timelines: by the pattern whose tensors they belong to; "*" for all.
    patterns: of each tensor, by all its names, under a ``ByName``.
    module_cache: the module on the averages, once it was requested.
    trusted: θ₀ no longer dominates it, or a warning was given; see ``initial_weight``.
    """

    name: str
    _decay: Decay | ByName
    value_of: Callable[[T, T | None], T]
    tensors: dict[str, T] = field(default_factory=dict[str, T])
    residuals: dict[str, T] = field(default_factory=dict[str, T])
    joined: dict[str, int] = field(default_factory=dict[str, int])
    timelines: dict[str, Timeline] = field(default_factory=dict[str, Timeline])
    patterns: dict[str, str] = field(default_factory=dict[str, str])
    module_cache: AveragedModule[Any, T] | None = None
    trusted: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        decays = self._decay.decays if isinstance(self._decay, ByName) else {ALL: self._decay}
        self.timelines = self.timelines or {pattern: Timeline(one) for pattern, one in decays.items()}

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a module on its own tensors."""
        return self.__dict__ | {"module_cache": None}

    def __repr__(self) -> str:
        count = len(self.tensors)
        return f"Track({self.name!r}, decay={self.decay}, {count} tensors, {self.summary})"

    def _repr_html_(self) -> str:
        """In a notebook: the numbers, and a small picture of the weights."""
        title = f"Track {self.name!r}, {len(self.tensors)} tensors"
        return "".join(
            html(
                title + f", {pattern}" * self.by_name,
                [("decay", str(one.decay)), ("last applied", f"{one.beta:.6g}")],
                one.profile,
            )
            for pattern, one in self.timelines.items()
        )

    @property
    def summary(self) -> str:
        """The numbers of its profile, or of each, in one line."""
        if not self.by_name:
            return summary(self.profile)
        return "; ".join(f"{pattern}: {summary(one.profile)}" for pattern, one in self.timelines.items())

    @property
    def by_name(self) -> bool:
        """Whether its tensors have different decays."""
        return isinstance(self._decay, ByName)

    @property
    def decay(self) -> Decay | ByName:
        """The schedule; it cannot be changed, since the profile depends on it."""
        return self._decay

    @decay.setter
    def decay(self, value: object) -> None:
        refuse_decay(f"ema.tracks[{self.name!r}].decay", value)

    def joined_after(self, names: Iterable[str], heirs: Mapping[str, str], step: int) -> dict[str, int]:
        """The step at which each tensor of a new plan joined; new ones join at ``step``."""
        joined = {name: self.joined[old] for name, old in heirs.items() if old in self.joined}
        return joined | ({name: step for name in names if name not in heirs} if step else {})

    def patterns_after(
        self, entries: Iterable[TensorEntry[T]], heirs: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str]:
        """The pattern of each tensor of a new plan; one that keeps its average keeps the pattern too.

        Raises:
            ConfigError: a new tensor is matched by none.
        """
        if not isinstance(self._decay, ByName):
            return {}
        patterns: dict[str, str] = {}
        for entry in entries:
            kept = self.patterns[heirs[entry.name]] if entry.name in heirs else None
            patterns |= dict.fromkeys(entry.names, kept or self._decay.pattern_of(entry.names))
        return patterns

    def restart(self, step: int) -> None:
        """Restart schedules, histories and tensors at ``step``."""
        for timeline in self.timelines.values():
            timeline.restart(step)
        self.joined, self.tensors, self.residuals, self.trusted = {}, {}, {}, False

    def value(self, name: str) -> T:
        """One average with all its digits."""
        return self.value_of(self.tensors[name], self.residuals.get(name))

    @property
    def steps_averaged(self) -> int:
        """Training steps since it began, without those that copied."""
        return next(iter(self.timelines.values())).steps_averaged

    @property
    def profile(self) -> Profile:
        """The exact weight of every point of the trajectory in this average.

        Raises:
            ConfigError: its tensors have different decays.
        """
        return self._only("profile").profile

    @property
    def beta(self) -> float:
        """The composed decay last applied, 1 before the first; refused as ``profile`` is."""
        return self._only("beta").beta

    @property
    def clock(self) -> int:
        """The schedule's time so far, in its unit; refused as ``profile`` is."""
        return self._only("clock").clock

    @property
    def history(self) -> History:
        """The updates so far; refused as ``profile`` is."""
        return self._only("history").history

    @property
    def profiles(self) -> dict[str, Profile]:
        """The profile of the tensors of each pattern; of all, "*", if the decay is not by name."""
        return {pattern: timeline.profile for pattern, timeline in self.timelines.items()}

    def profile_of(self, name: str) -> Profile:
        """The profile of one tensor: that of its decay, from the step at which the tensor joined."""
        if name not in self.tensors:
            raise PlanError(f"{name!r} is not averaged; averaged are {', '.join(list(self.tensors)[:8])}, …")
        profile = self.timelines[self.pattern_of(name)].profile
        return profile.since(self.joined[name]) if name in self.joined else profile

    def pattern_of(self, name: str) -> str:
        """The pattern of a tensor; "*" if the decay is not by name."""
        return self.patterns.get(name, ALL)

    def _only(self, what: str) -> Timeline:
        if self.by_name:
            raise ConfigError(
                f"the average {self.name!r} has a decay for each pattern, so it has no single {what}: see "
                "profile_of(name), or profiles and timelines, by pattern."
            )
        return self.timelines[ALL]


def timelines_of(tracks: Iterable[Track[Any]]) -> list[Timeline]:
    """Every schedule in use, track by track, in the order of an update's decays."""
    return [timeline for track in tracks for timeline in track.timelines.values()]


def places_of(tracks: Sequence[Track[Any]], name: str) -> tuple[int, ...]:
    """The places in ``timelines_of`` of the tensor's in each track; () if no track has several."""
    if not any(track.by_name for track in tracks):
        return ()
    places, first = list[int](), 0
    for track in tracks:
        places.append(first + list(track.timelines).index(track.pattern_of(name)))
        first += len(track.timelines)
    return tuple(places)


def averages_in(tracks: Sequence[Track[T]], name: str) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """One tensor's average in each track, and their residuals where averages are in two parts."""
    averages = tuple([track.tensors[name] for track in tracks])
    return averages, tuple([track.residuals[name] for track in tracks if name in track.residuals])


def _by_track(decay: Decays) -> Mapping[str, AnyDecay]:
    if isinstance(decay, Adaptive):
        return decay.decays
    return {"average": decay} if callable(decay) or not isinstance(decay, Mapping) else decay


def named_decays(decay: Decays) -> dict[str, Decay | ByName]:
    """Decays by track name: a single decay is the track "average", an ``Adaptive`` several."""
    named = _by_track(decay)
    if not named:
        raise ConfigError("decay={}: name at least one track.")
    if "raw" in named:
        raise ConfigError(f'decay={decay}: "raw" means the model\'s own weights; name the track otherwise.')
    if "base" in named:
        raise ConfigError(f'decay={decay}: "base" means θ₀ in an archive; name the track otherwise.')
    if any(isinstance(value, Adaptive) for value in named.values()):
        raise ConfigError(
            f"decay={decay}: Adaptive is several tracks already: give it alone, decay=Adaptive(…)."
        )
    return {name: value if isinstance(value, ByName) else as_decay(value) for name, value in named.items()}


def check_single(decay: object) -> None:
    """Check that this is one decay, not several by name.

    Raises:
        ConfigError: it is a mapping, or an ``Adaptive``.
    """
    if isinstance(decay, (Mapping, Adaptive)):
        raise ConfigError(
            f"decay={decay}: a teacher is one average, so it has one decay. Keep further averages of the "
            "student in an EMA of their own beside it."
        )


def refuse_decay(where: str, value: object) -> NoReturn:
    """Refuse to assign a decay; the error explains how to change it."""
    raise ConfigError(
        f"{where} = {value!r}: a decay is fixed when the EMA is made. One that changes is a schedule, "
        "polyak.Piecewise([(1000, 0.99), (None, 0.999)]) or polyak.Warmup(0.999). To continue with another, "
        "make an EMA with it and load_state_dict(ema.state_dict(), strict=False) into that."
    )


def check_counts_steps(tracks: Iterable[Track[Any]]) -> None:
    """Refuse decays in samples or tokens, which an optimizer does not know.

    Raises:
        ConfigError: a track has one.
    """
    for track in tracks:
        for timeline in track.timelines.values():
            if (unit := timeline.unit) != "steps":
                raise ConfigError(
                    f"track {track.name!r} counts {unit}, which an optimizer does not know: "
                    f"call ema.update({unit}=…) yourself."
                )


def warn_if_swapped(decays: Decays) -> None:
    """Warn of a plain β that is probably 1-β; a ``ByName`` warned when it was made."""
    for given in _by_track(decays).values():
        if not isinstance(given, ByName):
            warn_if_rate(given, stacklevel=3)
