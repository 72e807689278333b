"""Decays that change as the run goes on.

Notation as in ``decay.py``: t counts from 1, βₜ is the decay applied at t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.decay import Array, Config, Decay, DecayLike, as_decay, check, check_beta, check_integer


@dataclass(frozen=True)
class Ramp(Decay):
    """An exponential approach to β: ``βₜ = β·(1 - e^(-t/τ))``.

    Args:
        beta: β in [0, 1].
        tau: τ > 0, in steps.

    Raises:
        ConfigError: an argument is outside its range.

    Examples:
        >>> round(Ramp(0.9999, tau=2000)(2000), 4)
        0.6321

    Source: the schedule of YOLOv5 and its successors.
    """

    beta: float
    tau: float = 2000

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)
        check("tau", self.tau, "the ramp's time scale must be positive and finite", 0 < self.tau < math.inf)

    def betas(self, t: Array) -> Array:
        return -self.beta * np.expm1(-t / self.tau)


@dataclass(frozen=True)
class Capped(Decay):
    """A running mean of about the last tenth, capped: ``βₜ = min(β, (1+s)/(10+s))``.

    ``s = max(0, t - after)`` counts the steps.

    Args:
        beta: β in [0, 1].
        after: steps before it begins to rise; 1 for those who count steps from 0.

    Raises:
        ConfigError: β is outside [0, 1], or ``after`` negative.

    Examples:
        >>> [Capped(0.999)(t) for t in (8, 100_000)]
        [0.5, 0.999]

    Source: the ``num_updates`` rule of TensorFlow's ExponentialMovingAverage.
    """

    beta: float
    after: int = 0

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)
        check("after", self.after, "steps cannot be negative", self.after >= 0)

    def betas(self, t: Array) -> Array:
        s = np.maximum(0.0, t - self.after)
        return np.minimum(self.beta, (1 + s) / (10 + s))


@dataclass(frozen=True)
class Cosine(Decay):
    """A decay that rises from start to end along half a cosine, then stays.

    ``βₜ = end - (end - start)·(cos(π·min(t, total)/total) + 1)/2``. BYOL uses start = 0.996, end = 1.

    Args:
        start: β at t = 0, in [0, 1].
        end: β from t = total on, in [0, 1].
        total: length of the rise in steps, > 0.

    Raises:
        ConfigError: an argument is outside its range.

    Examples:
        >>> Cosine(0.996, 1.0, total=1000)(1000)
        1.0

    Source: Grill et al. 2020 (BYOL), arXiv 2006.07733, §3.3.
    """

    start: float
    end: float
    total: int

    def __post_init__(self) -> None:
        check_beta("start", self.start)
        check_beta("end", self.end)
        check("total", self.total, "the rise must last at least one step", self.total >= 1)

    def betas(self, t: Array) -> Array:
        return (
            self.end
            - (self.end - self.start) * (np.cos(np.pi * np.minimum(t, self.total) / self.total) + 1) / 2
        )


@dataclass(frozen=True)
class Piecewise(Decay):
    """A different decay in each phase of training.

    ``βₜ`` is the decay of the first piece whose ``until`` is at least t; a piece sees the run's own t,
    not the time since it began. The last piece has ``until=None`` and never ends.

    Args:
        pieces: pairs (until, decay), ``until`` in steps and rising, e.g. ``[(1000, 0.9), (None, 0.999)]``.

    Raises:
        ConfigError: no pieces, ends that do not rise, a last piece that ends, or a piece in another unit.

    Examples:
        >>> p = Piecewise([(1000, 0.9), (None, 0.999)])
        >>> p(1000), p(1001)
        (0.9, 0.999)
    """

    pieces: tuple[tuple[int | None, Decay], ...]

    def __init__(self, pieces: Sequence[tuple[int | None, DecayLike]]) -> None:
        object.__setattr__(self, "pieces", tuple((until, as_decay(decay)) for until, decay in pieces))
        ends = [until for until, _ in self.pieces]
        closed = [until for until in ends[:-1] if until is not None]
        opened = len(ends) == len(closed) + 1 and ends[-1] is None
        if not opened or not all(a < b for a, b in pairwise([0, *closed])):
            raise ConfigError(
                f"pieces end at {ends}: ends must be positive and rise, and the last must be None, "
                "e.g. [(1000, 0.9), (None, 0.999)]."
            )
        foreign = [decay for _, decay in self.pieces if decay.unit != "steps"]
        if foreign:
            raise ConfigError(
                f"piece {foreign[0]} counts {foreign[0].unit}: the pieces of Piecewise count steps."
            )

    @property
    def ahead(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return min(decay.ahead for _, decay in self.pieces)

    def effort(self, k: int) -> int:
        return sum(decay.effort(1) for _, decay in self.pieces) * k

    def betas(self, t: Array) -> Array:
        out = self.pieces[-1][1].betas(t)
        for until, decay in reversed(self.pieces[:-1]):
            out = np.where(t <= float(until or 0), decay.betas(t), out)
        return out

    def to_config(self) -> Config:
        return {"kind": "Piecewise", "pieces": [[until, decay.to_config()] for until, decay in self.pieces]}

    @classmethod
    def _from_arguments(cls, arguments: Config) -> Decay:
        return cls([(until, Decay.from_config(config)) for until, config in arguments["pieces"]])


@dataclass(frozen=True)
class Anneal(Decay):
    """The average that a learning-rate anneal would have reached: ``βₜ = (1-gₜ) / (1-gₜ₊₁)``.

    Had each of the last k updates been multiplied by gₜ, falling from g₁ = 1 to gₖ₊₁ = 0, the run would
    have ended, to first order, at ``Σ wₜ·θₜ`` with ``wₜ = gₜ - gₜ₊₁``. Start it k steps before the end.

    Args:
        steps: k ≥ 1, the length of the anneal. Later updates change nothing.
        shape: "linear", ``gₜ = 1 - x`` with ``x = (t-1)/k``, which is the uniform mean of the last k; or
            "cosine", ``gₜ = (1 + cos πx)/2``.

    Raises:
        ConfigError: ``steps`` is no whole number ≥ 1, or ``shape`` is neither.

    Examples:
        >>> [round(Anneal(4, "linear")(t), 3) for t in (1, 2, 3, 4, 5)]
        [0.0, 0.5, 0.667, 0.75, 1.0]

    Source: an update θₜ - θₜ₋₁ scaled by gₜ moves the end point by as much; summation by parts gives wₜ.
    """

    steps: int
    shape: Literal["linear", "cosine"] = "cosine"
    closed = True

    def __post_init__(self) -> None:
        check_integer("steps", self.steps, 1)
        if self.shape not in ("linear", "cosine"):
            raise ConfigError(f'shape={self.shape!r}: must be "linear" or "cosine".')

    def betas(self, t: Array) -> Array:
        return self.products(t - 1, 1)

    def products(self, t: Array, k: int) -> Array:
        gone, going = self._spent(t), self._spent(t + k)
        return gone / going  # going > 0: at least one step has been taken

    def _spent(self, t: Array) -> Array:
        """``1 - gₜ₊₁``: the weight given out by step t."""
        x = np.minimum(t / self.steps, 1.0)
        return x if self.shape == "linear" else np.sin(0.5 * math.pi * x) ** 2
