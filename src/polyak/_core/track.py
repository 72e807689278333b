"""One average: its tensors, its schedule, and the history from which its profile follows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, NoReturn, TypeAlias

from polyak._core.averaged_module import AveragedModule
from polyak._core.clock import Clock
from polyak._core.tensors import T
from polyak.errors import ConfigError, PlanError
from polyak.schedules import COPY, Adaptive, Decay, History, Profile, Warmup, as_decay
from polyak.schedules.decay import DecayLike, Unit, composed
from polyak.schedules.drawing import html, summary
from polyak.schedules.runs import length

Decays: TypeAlias = DecayLike | Mapping[str, DecayLike] | Adaptive
# Its half-life grows with the run, about 0.69·t^⅔ steps, so the length of the run need not be known.
DEFAULT_DECAY = Warmup(0.9999)


class Ahead(NamedTuple):
    """Precomputed decays of the next updates: from ``first`` on, ``advance`` of the schedule's unit apart."""

    first: int
    advance: int
    betas: Sequence[float]


_NOTHING_AHEAD = Ahead(0, 0, ())


@dataclass(repr=False)
class Track(Generic[T]):
    """One of the averages of an ``EMA``.

    name: ``"average"`` unless several were named.
    _decay: the schedule, which ``decay`` reads.  unit, clock: its time so far.
    beta: the composed decay last applied, 1 before the first.
    value_of: an average and its residual, as one tensor.
    tensors: averages by name, in the storage dtype.  residuals: their low parts, if any.
    joined: the step at which a tensor joined, for those added after the first step.
    module_cache: the module on the averages, once it was requested.
    trusted: θ₀ no longer dominates it, or a warning was given; see ``initial_weight``.
    """

    name: str
    _decay: Decay
    value_of: Callable[[T, T | None], T]
    tensors: dict[str, T] = field(default_factory=dict[str, Any])
    residuals: dict[str, T] = field(default_factory=dict[str, Any])
    clock: int = 0
    beta: float = 1.0
    joined: dict[str, int] = field(default_factory=dict[str, int])
    history: History = field(default_factory=History)
    module_cache: AveragedModule[Any, T] | None = None
    trusted: bool = field(default=False, compare=False)
    _ahead: Ahead = field(default=_NOTHING_AHEAD, compare=False)
    _entered: Clock | None = field(default=None, compare=False)  # state after the last update
    unit: Unit = field(init=False)

    def __post_init__(self) -> None:
        self.unit = self._decay.unit

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a module on its own tensors."""
        return self.__dict__ | {"module_cache": None}

    def __repr__(self) -> str:
        count = len(self.tensors)
        return f"Track({self.name!r}, decay={self.decay}, {count} tensors, {summary(self.profile)})"

    def _repr_html_(self) -> str:
        """In a notebook: the numbers, and a small picture of the weights."""
        rows = [("decay", str(self.decay)), ("last applied", f"{self.beta:.6g}")]
        return html(f"Track {self.name!r}, {len(self.tensors)} tensors", rows, self.profile)

    @property
    def decay(self) -> Decay:
        """The schedule; it cannot be changed, since the profile depends on it."""
        return self._decay

    @decay.setter
    def decay(self, value: object) -> None:
        refuse_decay(f"ema.tracks[{self.name!r}].decay", value)

    def joined_after(self, names: Iterable[str], heirs: Mapping[str, str], step: int) -> dict[str, int]:
        """The step at which each tensor of a new plan joined; new ones join at ``step``."""
        joined = {name: self.joined[old] for name, old in heirs.items() if old in self.joined}
        return joined | ({name: step for name in names if name not in heirs} if step else {})

    def restart(self, step: int) -> None:
        """Restart schedule, history and tensors at ``step``."""
        self.clock, self.beta, self.joined, self.history = 0, 1.0, {}, History()
        self.tensors, self.residuals, self.trusted = {}, {}, False
        if step:
            self.history.restart(step)

    def value(self, name: str) -> T:
        """One average with all its digits."""
        return self.value_of(self.tensors[name], self.residuals.get(name))

    def next_beta(self, clock: Clock) -> float:
        """The composed decay of an update that brings the EMA to ``clock``.

        It is read from a precomputed block as long as updates are evenly spaced; the first one at another
        spacing is computed alone, and a new block when a second follows.
        """
        advance: int = getattr(clock, self.unit)
        first, size, betas = self._ahead
        place, off = divmod(self.clock - first, advance)
        if off or size != advance or not 0 <= place < len(betas):
            count = self._decay.ahead if size == advance else 1
            betas = composed(self._decay, self.clock, advance, count).tolist()
            self._ahead, place = Ahead(self.clock, advance, betas), 0
        return betas[place]

    def record(self, beta: float, clock: Clock, copying: bool) -> None:
        """Enter an update that brought the EMA to ``clock``; twice is the same as once."""
        if self._entered is clock:
            return
        history, advance = self.history, getattr(clock, self.unit)
        # One line each: no interrupt comes between assignments without a call.
        if copying:
            copied = history.copied(clock.step)
            self.history, self.beta, self.clock, self._entered = copied, beta, self.clock + advance, clock
        elif history.extended_by(self._decay, self.clock, clock.waiting, advance):
            count, end = history.count + 1, self.clock + advance
            history.count, self.beta, self.clock, self._entered = count, beta, end, clock
        else:
            later = history.followed_by(self._decay, self.clock, clock.waiting, advance)
            self.history, self.beta, self.clock, self._entered = later, beta, self.clock + advance, clock

    @property
    def steps_averaged(self) -> int:
        """Training steps since it began, without those that copied."""
        return length([run for run in self.history.runs if run.decay != COPY])

    @property
    def profile(self) -> Profile:
        """The exact weight of every point of the trajectory in this average."""
        return self.history.profile()

    def profile_of(self, name: str) -> Profile:
        """The profile of one tensor: that of the track, from the step at which the tensor joined."""
        if name not in self.tensors:
            raise PlanError(f"{name!r} is not averaged; averaged are {', '.join(list(self.tensors)[:8])}, …")
        return self.profile.since(self.joined[name]) if name in self.joined else self.profile


def averages_in(tracks: Sequence[Track[T]], name: str) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """One tensor's average in each track, and their residuals where averages are in two parts."""
    averages = tuple([track.tensors[name] for track in tracks])
    return averages, tuple([track.residuals[name] for track in tracks if name in track.residuals])


def _by_name(decay: Decays) -> Mapping[str, DecayLike]:
    if isinstance(decay, Adaptive):
        return decay.decays
    return {"average": decay} if callable(decay) or not isinstance(decay, Mapping) else decay


def named_decays(decay: Decays) -> dict[str, Decay]:
    """Decays by track name: a single decay is the track "average", an ``Adaptive`` several."""
    named = _by_name(decay)
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
    return {name: as_decay(value) for name, value in named.items()}


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
        unit = track.decay.unit
        if unit != "steps":
            raise ConfigError(
                f"track {track.name!r} counts {unit}, which an optimizer does not know: "
                f"call ema.update({unit}=…) yourself."
            )


def warn_if_swapped(decay: Decays) -> None:
    """Warn of a plain β so small that it is probably 1-β, which others call momentum, rate or τ.

    Zero, which copies the model, and ``Constant``, which is explicit, give no warning.
    """
    for given in _by_name(decay).values():
        if not callable(given) and 0 < given < 0.5:
            warnings.warn(
                f"decay={given!r} keeps only {given:.3g} of the average at each step. If it is a momentum, "
                f"rate or τ, which is 1-decay, did you mean {1 - given:.12g}? If not, "
                f"polyak.Constant({given!r}) says so without this warning.",
                stacklevel=3,
            )
