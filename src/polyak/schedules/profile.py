"""The profile of an average: the exact weight of every point of its trajectory.

Legend: T training steps so far; w has shape [T + 1]; wₜ is the weight of θₜ, the parameters after
step t, and w₀ that of the initial parameters. For a history of decays βₜ,

    ``wₜ = (1-βₜ)·exp(L_T - Lₜ)``,  ``w₀ = exp(L_T)``,  ``Lₜ = log β₁ + … + log βₜ``.

A history is a list of runs, each of evenly spaced updates with one decay, so that a million steps take a few
dozen bytes. Every event is a run: a copy is one update with β = 0, a pause is updates with β = 1, a restart
is a copy after which the clock starts again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import takewhile
from operator import add
from typing import Any

import numpy as np

from polyak.errors import CheckpointError, ConfigError
from polyak.schedules.decay import Array, Decay, DecayLike, as_decay, decay_in_file
from polyak.schedules.drawing import Scale, draw, html
from polyak.schedules.runs import COPY, Run, effects, length, remaining
from polyak.schedules.windows import Strand, edges, strands, windows

_DECAYS = 1 << 12  # different ones in a file's profile
_CALL = 300  # evaluations of a decay that take as long as a run's overhead


@dataclass(frozen=True)
class Profile:
    """The weights of an average: a sum of histories, each with a coefficient.

    Args:
        terms: pairs (coefficient, runs). Made by ``from_decay``, ``raw``, ``+``, ``*`` and by averages.
        within: the largest error of the total weight up to any step: 0 unless a history of thousands of
            updates of varying size was merged.

    Examples:
        >>> p = Profile.from_decay(0.5, steps=2)
        >>> p.weights()
        array([0.25, 0.25, 0.5 ])
        >>> p.initial_weight, p.mean_age
        (0.25, 0.75)
    """

    terms: tuple[tuple[float, tuple[Run, ...]], ...]
    within: float = 0.0

    @classmethod
    def from_decay(cls, decay: DecayLike, steps: int, *, every: int = 1, start: int = 0) -> Profile:
        """The profile of ``steps`` training steps under one decay.

        Args:
            decay: the schedule, counted in steps from ``start``.
            steps: training steps, ≥ 0. Steps after the last multiple of ``every`` are not in the average.
            every: update every k-th step with the composed decay, ≥ 1.
            start: copy the parameters up to this step, ≥ 0.

        Raises:
            ConfigError: a negative count, or ``every`` below 1.
        """
        if steps < 0 or every < 1 or start < 0:
            raise ConfigError(
                f"from_decay(steps={steps}, every={every}, start={start}): needs ≥ 0, ≥ 1 and ≥ 0."
            )
        begun = start if steps >= start else steps - steps % every
        head = (Run(COPY, 0, 1, begun, 1),) if begun else ()
        count = (steps - begun) // every
        body = (Run(as_decay(decay), 0, count, every, every),) if count else ()
        return cls(((1.0, head + body),))

    @classmethod
    def raw(cls, step: int) -> Profile:
        """The profile of the raw parameters after ``step``: all the weight on one point."""
        return cls.from_decay(COPY, step, start=step)

    @staticmethod
    def mix(profiles: Sequence[Profile], weights: Sequence[float]) -> Profile:
        """``Σ weightsᵢ·profilesᵢ``: the profile of the same mixture of the averages themselves.

        Raises:
            ConfigError: the lists differ in length or are empty.
        """
        if len(profiles) != len(weights) or not profiles:
            raise ConfigError(
                f"mix: {len(profiles)} profiles and {len(weights)} weights; give one weight each."
            )
        return reduce(add, (profile * weight for profile, weight in zip(profiles, weights, strict=True)))

    def __add__(self, other: Profile) -> Profile:
        return Profile(self.terms + other.terms, self.within + other.within)

    def __mul__(self, factor: float) -> Profile:
        terms = tuple((coefficient * factor, runs) for coefficient, runs in self.terms)
        return Profile(terms, self.within * abs(factor))

    __rmul__ = __mul__

    @cached_property
    def steps(self) -> int:
        """T, the last training step of the profile."""
        return max(self._lengths, default=0)

    @cached_property
    def _lengths(self) -> list[int]:
        return [length(runs) for _, runs in self.terms]

    @property
    def known(self) -> bool:
        """Whether its weights can be computed: false with a decay from a file that is unknown here."""
        return all(run.decay.known for _, runs in self.terms for run in runs)

    def weights(self) -> Array:
        """w, float64 of shape [T + 1]: the weight of each θₜ, oldest first."""
        out = np.zeros(self.steps + 1)
        for low, window in self.windows(self.steps + 1):
            out[low : low + len(window)] = window
        return out

    def windows(self, points: int) -> Iterator[tuple[int, Array]]:
        """The weights of θ₀ … θ_(points-1), newest window first, each as (first point, weights).

        Windows of two profiles over the same number of points are aligned, so that a Gram matrix over a
        million steps is summed in a few megabytes.
        """
        streams = [windows(strand, points) for strand in self._strands]
        for low, high in edges(points):
            window = np.zeros(high - low)
            for stream in streams:
                window += next(stream)
            yield low, window

    @cached_property
    def _strands(self) -> list[Strand]:
        return strands(self.terms)

    @cached_property
    def effort(self) -> int:
        """The cost of computing its weights, in evaluations of a decay of about 50 ns each."""
        updates = (
            run.count * run.decay.effort(run.advance) + _CALL for one in self._strands for run in one.runs
        )
        return sum(updates) + self.steps * (1 + len(self._strands)) // 16

    @cached_property
    def _effects(self) -> list[tuple[Array, Array]]:
        return [effects(runs) for _, runs in self.terms]

    @property
    def total(self) -> float:
        """``Σwₜ``: 1 for an average."""
        return math.fsum(coefficient for coefficient, _ in self.terms)

    @cached_property
    def initial_weight(self) -> float:
        """The weight of the initial parameters: θ₀, or those at ``start``.

        In a mixture, a term that is one later point of the trajectory, such as a raw checkpoint, does not
        count.
        """
        begun = zip(self.terms, self._effects, strict=True)
        return math.fsum(
            coefficient * remaining(logs)[len(list(takewhile(lambda run: run.decay == COPY, runs)))]
            for (coefficient, runs), (logs, _) in begun
            if len(self.terms) == 1 or not _is_point(runs)
        )

    @cached_property
    def mean_age(self) -> float:
        """``Σwₜ·(T-t) / Σwₜ``, in training steps."""
        ages = (
            coefficient * (gains @ remaining(logs)[1:] + self.steps - steps)
            for (coefficient, _), (logs, gains), steps in zip(
                self.terms, self._effects, self._lengths, strict=True
            )
        )
        return math.fsum(ages) / self.total

    @cached_property
    def effective_samples(self) -> float:
        """``(Σwₜ)² / Σwₜ²``: how many equally weighted points would be as noisy (Kish 1965)."""
        return self.total**2 / float(sum(window @ window for _, window in self.windows(self.steps + 1)))

    @cached_property
    def half_life(self) -> float:
        """The age, in training steps, beyond which half of the weight lies.

        ``R(h) = ½`` where R(a) is the share of the weight at least a steps old, log-linear between
        points: exactly ``ln ½ / ln β`` for a constant β that has run long enough. When more than
        half rests on the oldest point, its age.
        """
        if len(self.terms) != 1:
            return self._age_of(0.5)
        # The remaining weight before the newest runs gives the number of runs within this share.
        runs, left = self.terms[0][1], remaining(self._effects[0][0])
        kept = int(np.searchsorted(left, 0.5, side="right"))
        return length(runs[kept:]) + Profile(((1.0, runs[:kept]),))._age_of(0.5 / left[kept])

    def _age_of(self, share: float) -> float:
        """The age beyond which this share of the weight lies."""
        ages = np.empty(0)  # of the points seen
        newer = np.zeros(1)  # the weight of all points newer than each
        for low, window in self.windows(self.steps + 1):
            seen = np.flatnonzero(window)[::-1]
            ages = np.append(ages, self.steps - low - seen)
            newer = np.append(newer, newer[-1] + np.cumsum(window[seen]) / self.total)
            crossed = int(np.searchsorted(newer, (1 - share) * (1 - 1e-15)))
            if crossed < len(ages):
                older = 1 - newer[crossed - 1 : crossed + 1]  # R at the points on either side of the crossing
                part = math.log(older[0] / share) / math.log(older[0] / older[1]) if older[1] > 0 else 0.0
                return float(ages[crossed - 1] + part * (ages[crossed] - ages[crossed - 1]))
        return float(ages[-1]) if len(ages) else 0.0

    def plot(self, width: int = 80, height: int = 10, scale: Scale = "linear") -> str:
        """The weight of each training step, drawn in lines of text: ``print(profile.plot())``.

        Args:
            width: columns of the terminal, at least 40.
            height: lines of the bars, at least 2.
            scale: of the weights; "log" shows six decades.

        Raises:
            ConfigError: the weights are unknown, as after reading a file of a decay that is not known here.
        """
        return draw(self, width, height, scale)

    def _repr_html_(self) -> str:
        """In a notebook: the numbers, and a small picture of the weights."""
        return html("Profile", [("steps", f"{self.steps:,}")], self)

    def since(self, step: int) -> Profile:
        """The same history for a tensor that joined at ``step`` with its value at that time."""
        terms = tuple((coefficient, _since(runs, step)) for coefficient, runs in self.terms)
        return Profile(terms, self.within)

    def to_config(self) -> dict[str, Any]:
        """The histories, run-length encoded, as values that JSON has."""
        places: dict[Decay, int] = {}
        terms = [
            [coefficient, [[places.setdefault(run.decay, len(places)), *run[1:]] for run in runs]]
            for coefficient, runs in self.terms
        ]
        exactness = {"within": self.within} if self.within else {}
        return {"decays": [decay.to_config() for decay in places], "terms": terms, **exactness}

    def to_json(self) -> str:
        """The histories as text: a few hundred bytes whatever the number of steps, if updates are equal."""
        return json.dumps(self.to_config(), separators=(",", ":"))

    @classmethod
    def from_config(cls, data: Any) -> Profile:
        """The inverse of ``to_config``, also after JSON.

        Raises:
            CheckpointError: it is not a profile.
        """
        try:
            if len(data["decays"]) > _DECAYS:
                raise ValueError(f"it has {len(data['decays']):,} decays, at most {_DECAYS:,} are read")
            decays = [decay_in_file(config) for config in data["decays"]]
            terms = tuple(
                (_finite(c), tuple(_run(decays, *run) for run in runs)) for c, runs in data["terms"]
            )
            return cls(tuple(terms), abs(_finite(data.get("within", 0.0))))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise CheckpointError(f"profile {str(data)[:80]!r} cannot be read: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """The inverse of ``to_json``.

        Raises:
            CheckpointError: the text is not a profile.
        """
        try:
            return cls.from_config(json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"profile {text[:80]!r} cannot be read: {error}") from error


def _finite(coefficient: float) -> float:
    if not math.isfinite(coefficient):
        raise ValueError(f"coefficient {coefficient} is not finite")
    return float(coefficient)


def _run(decays: Sequence[Decay], *numbers: int) -> Run:
    if not (
        len(numbers) == 5
        and all(type(n) is int for n in numbers)
        and 0 <= min(numbers) <= max(numbers) < 1 << 63
        and min(numbers[2], numbers[4]) >= 1
        and (numbers[3] >= 1 or numbers[2] == 1)  # only a copy takes no step
    ):
        raise ValueError(
            f"run {list(numbers)} is not [decay, clock ≥ 0, count ≥ 1, stride ≥ 1, advance ≥ 1, all < 2⁶³]"
        )
    index, clock, count, stride, advance = numbers
    return Run(decays[index], clock, count, stride, advance)


def _is_point(runs: Sequence[Run]) -> bool:
    """Whether a history is just the parameters after some step; that of θ₀ has no run."""
    return len(runs) > 0 and all(run.decay == COPY for run in runs)


def _since(runs: Sequence[Run], step: int) -> tuple[Run, ...]:
    kept: list[Run] = [Run(COPY, 0, 1, step, 1)]
    end = 0
    for run in runs:
        begun, end = end, end + run.count * run.stride
        if end > step:
            gone, late = divmod(max(0, step - begun), run.stride)
            rest = run._replace(clock=run.clock + gone * run.advance, count=run.count - gone)
            if late:  # it joined between two updates, so the first interval is shorter
                kept.append(rest._replace(count=1, stride=run.stride - late))
                rest = rest._replace(clock=rest.clock + run.advance, count=rest.count - 1)
            if rest.count:
                kept.append(rest)
    return tuple(kept)
