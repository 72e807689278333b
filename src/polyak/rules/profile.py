"""Which parameters an average is made of: the exact weight of every point of its trajectory.

Legend: T training steps so far; w has shape [T + 1]; wₜ is the weight of θₜ, the parameters after
step t, and w₀ that of the parameters averaging began with. For a history of decays βₜ,

    ``wₜ = (1-βₜ)·exp(L_T - Lₜ)``,  ``w₀ = exp(L_T)``,  ``Lₜ = log β₁ + … + log βₜ``.

A history is a list of runs, each one decay acting at a steady pace, so that a million steps cost a
few dozen bytes. Everything an average can live through is a run: a copy is one update with β = 0,
a pause is updates with β = 1, a restart is a copy followed by a clock that starts again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import takewhile
from operator import add
from typing import Any, NamedTuple

import numpy as np

from polyak.errors import CheckpointError, ConfigError
from polyak.rules.decay import Array, Constant, Decay, as_decay

COPY = Constant(0.0)
_WINDOW = 1 << 14  # points looked at together: 128 KiB of float64, which stays in cache


class Run(NamedTuple):
    """``count`` updates at a steady pace; the j-th applies ``B(clock + (j-1)·advance, advance)``.

    Each moves ``stride`` training steps on; ``advance`` is the same span in the decay's own unit.
    """

    decay: Decay
    clock: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count is not missed here
    stride: int
    advance: int


class History:
    """The growing list of runs behind an average; ``record`` costs O(1) and merges equal updates."""

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        self._closed = list(runs[:-1])
        self._last = runs[-1] if runs else None

    def record(self, decay: Decay, clock: int, stride: int, advance: int) -> None:
        """One update: ``decay`` from ``clock`` over ``advance`` of its units, ``stride`` training steps."""
        last = self._last
        if last is not None:
            d, c, n, s, a = last
            if d is decay and s == stride and a == advance and c + n * a == clock:
                self._last = Run(d, c, n + 1, s, a)
                return
            self._closed.append(last)
        self._last = Run(decay, clock, 1, stride, advance)

    def restart(self, step: int) -> None:
        """A copy of the parameters at ``step``: nothing before it matters any more."""
        self._closed = []
        self._last = Run(COPY, 0, 1, step, 1)

    @property
    def runs(self) -> tuple[Run, ...]:
        return (*self._closed, self._last) if self._last is not None else ()

    def profile(self) -> Profile:
        return Profile(((1.0, self.runs),))


@dataclass(frozen=True)
class Profile:
    """The weights of an average: a sum of histories, each with a coefficient.

    Args:
        terms: pairs (coefficient, runs). Made by ``from_decay``, ``raw``, ``+``, ``*`` and by averages.

    Examples:
        >>> p = Profile.from_decay(0.5, steps=2)
        >>> p.weights()
        array([0.25, 0.25, 0.5 ])
        >>> p.initial_weight, p.mean_age
        (0.25, 0.75)
    """

    terms: tuple[tuple[float, tuple[Run, ...]], ...]

    @classmethod
    def from_decay(cls, decay: float | Decay, steps: int, *, every: int = 1, start: int = 0) -> Profile:
        """The profile of ``steps`` training steps under one decay.

        Args:
            decay: the schedule, counted in steps from ``start``.
            steps: training steps, ≥ 0. Steps after the last multiple of ``every`` are not in the average.
            every: act on each k-th step with the composed decay, ≥ 1.
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
        """The parameters after ``step`` themselves: all the weight on one point."""
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
        return Profile(self.terms + other.terms)

    def __mul__(self, factor: float) -> Profile:
        return Profile(tuple((coefficient * factor, runs) for coefficient, runs in self.terms))

    __rmul__ = __mul__

    @cached_property
    def steps(self) -> int:
        """T, the last training step the profile knows of."""
        return max((_length(runs) for _, runs in self.terms), default=0)

    def weights(self) -> Array:
        """w, float64 of shape [T + 1]: the weight of each θₜ, oldest first."""
        out = np.zeros(self.steps + 1)
        for low, window in self.windows(self.steps + 1):
            out[low : low + len(window)] = window
        return out

    def windows(self, points: int) -> Iterator[tuple[int, Array]]:
        """The weights of θ₀ … θ_(points-1), newest window first, each as (first point, weights).

        Windows of two profiles asked for the same number of points line up, which is how a Gram
        matrix over a million steps is summed in a few megabytes.
        """
        streams = [_windows(runs, points) for _, runs in self.terms]
        for low in _edges(points):
            high = min(low + _WINDOW, points)
            window = np.zeros(high - low)
            for (coefficient, _), stream in zip(self.terms, streams, strict=True):
                window += coefficient * next(stream)
            yield low, window

    @cached_property
    def total(self) -> float:
        """``Σwₜ``: 1 for an average."""
        return float(sum(window.sum() for _, window in self.windows(self.steps + 1)))

    @cached_property
    def initial_weight(self) -> float:
        """What still rests on the parameters averaging began with: θ₀, or those at ``start``.

        In a mixture, a term that is one later point of the trajectory, as a raw checkpoint is, began
        nothing and does not count.
        """
        begun = [(c, runs) for c, runs in self.terms if len(self.terms) == 1 or not _is_point(runs)]
        return float(sum(coefficient * _initial_weight(runs) for coefficient, runs in begun))

    @cached_property
    def mean_age(self) -> float:
        """``Σwₜ·(T-t) / Σwₜ``, in training steps."""
        ages = (
            window @ (self.steps - low - np.arange(len(window)))
            for low, window in self.windows(self.steps + 1)
        )
        return float(sum(ages)) / self.total

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
        ages, newer = (
            np.empty(0),
            np.zeros(1),
        )  # ages of the points seen, weight of all points newer than each
        for low, window in self.windows(self.steps + 1):
            seen = np.flatnonzero(window)[::-1]
            ages = np.append(ages, self.steps - low - seen)
            newer = np.append(newer, newer[-1] + np.cumsum(window[seen]) / self.total)
            crossed = int(np.searchsorted(newer, 0.5 * (1 - 1e-15)))
            if crossed < len(ages):
                older = 1 - newer[crossed - 1 : crossed + 1]  # R at the points on either side of the crossing
                share = math.log(2 * older[0]) / math.log(older[0] / older[1]) if older[1] > 0 else 0.0
                return float(ages[crossed - 1] + share * (ages[crossed] - ages[crossed - 1]))
        return float(ages[-1]) if len(ages) else 0.0

    def since(self, step: int) -> Profile:
        """The same history for a tensor that joined at ``step`` with the value it had then."""
        return Profile(tuple((coefficient, _since(runs, step)) for coefficient, runs in self.terms))

    def to_json(self) -> str:
        """The histories, run-length encoded: a few hundred bytes whatever the number of steps."""
        decays: list[Decay] = []
        terms: list[list[Any]] = []
        for coefficient, runs in self.terms:
            for run in runs:
                if run.decay not in decays:
                    decays.append(run.decay)
            terms.append([coefficient, [[decays.index(run.decay), *run[1:]] for run in runs]])
        return json.dumps({"decays": [d.to_config() for d in decays], "terms": terms}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """What ``to_json`` wrote.

        Raises:
            CheckpointError: the text is not a profile.
        """
        try:
            data = json.loads(text)
            decays = [Decay.from_config(config) for config in data["decays"]]
            return cls(
                tuple((_finite(c), tuple(_run(decays, *run) for run in runs)) for c, runs in data["terms"])
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"profile {text[:80]!r} cannot be read: {error}") from error


def _finite(coefficient: float) -> float:
    if not math.isfinite(coefficient):
        raise ValueError(f"coefficient {coefficient} is not finite")
    return float(coefficient)


def _run(decays: Sequence[Decay], *numbers: int) -> Run:
    least = (0, 0, 1, 0, 1)
    if len(numbers) != 5 or any(type(n) is not int or n < low for n, low in zip(numbers, least, strict=True)):
        raise ValueError(
            f"run {list(numbers)} is not [decay ≥ 0, clock ≥ 0, count ≥ 1, stride ≥ 0, advance ≥ 1]"
        )
    index, clock, count, stride, advance = numbers
    return Run(decays[index], clock, count, stride, advance)


def _length(runs: Sequence[Run]) -> int:
    return sum(run.count * run.stride for run in runs)


def _edges(points: int) -> range:
    return range((points - 1) // _WINDOW * _WINDOW, -1, -_WINDOW)


def _windows(runs: Sequence[Run], points: int) -> Iterator[Array]:
    """The weights one history gives to θ₀ … θ_(points-1), newest window first.

    Going backwards, the log of the product of all later decays is a running sum: no L_T - Lₜ is ever
    formed, so nothing cancels and a decay of 0 (log -∞) simply ends the past.
    """
    ends = np.cumsum([run.count * run.stride for run in runs]).tolist()
    later = 0.0
    for low in _edges(points):
        high = min(low + _WINDOW, points)
        window = np.zeros(high - low)
        for run, end in zip(reversed(runs), reversed(ends), strict=True):
            first, last = _updates_between(run, end - run.count * run.stride, low, high)
            if first > last:
                continue
            j = np.arange(last, first - 1, -1, dtype=np.float64)
            betas = _betas(run, j)
            with np.errstate(divide="ignore"):
                logs = later + np.cumsum(np.log(betas))
            kept = np.exp(np.concatenate(([later], logs[:-1])))  # what all later updates left of each
            window[(end - run.count * run.stride - low + j * run.stride).astype(np.intp)] += (
                1 - betas
            ) * kept
            later = float(logs[-1])
        if low == 0:
            window[0] += math.exp(later)
        yield window


def _betas(run: Run, j: Array) -> Array:
    """The decay of the j-th updates of a run, j ≥ 1."""
    before = run.clock + (j - 1) * run.advance
    return run.decay.betas(before + 1) if run.advance == 1 else run.decay.products(before, run.advance)


def _updates_between(run: Run, start: int, low: int, high: int) -> tuple[int, int]:
    """First and last j of the run's updates whose point ``start + j·stride`` lies in [low, high)."""
    if run.stride == 0:
        return (1, run.count) if low <= start < high else (1, 0)
    return max(1, -((start - low) // run.stride)), min(run.count, (high - 1 - start) // run.stride)


def _initial_weight(runs: Sequence[Run]) -> float:
    copied = list(takewhile(lambda run: run.decay == COPY, runs))
    return float(Profile(((1.0, tuple(runs)),)).weights()[_length(copied)])


def _is_point(runs: Sequence[Run]) -> bool:
    """Whether a history is the parameters after some step and nothing else; that of θ₀ is no run at all."""
    return len(runs) > 0 and all(run.decay == COPY for run in runs)


def _since(runs: Sequence[Run], step: int) -> tuple[Run, ...]:
    kept: list[Run] = [Run(COPY, 0, 1, step, 1)]
    end = 0
    for run in runs:
        begun, end = end, end + run.count * run.stride
        if end > step:
            gone, late = divmod(max(0, step - begun), run.stride)
            rest = run._replace(clock=run.clock + gone * run.advance, count=run.count - gone)
            if late:  # it joined between two updates: the next one comes sooner for it
                kept.append(rest._replace(count=1, stride=run.stride - late))
                rest = rest._replace(clock=rest.clock + run.advance, count=rest.count - 1)
            if rest.count:
                kept.append(rest)
    return tuple(kept)
