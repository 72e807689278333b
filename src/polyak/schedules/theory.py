"""What an average does to SGD on a noisy quadratic: exact, for any profile and any learning rate.

Legend: λ the curvature of an eigendirection, ηₛ the learning rate of step s = 1 … T, ξₛ the gradient noise,
E ξ² = σ², θ* = 0; w a profile, w₀ the weight of θ₀. Each direction is its own problem:

    ``θₛ = θₛ₋₁ - ηₛ·(λ·θₛ₋₁ + ξₛ)``.

Put into ``Σ wₛ·θₛ``, the weight Gₛ of what step s added is its own weight and what later steps keep of it:

    ``Σ wₛ·θₛ = G₀·θ₀ - Σₛ ηₛ·Gₛ·ξₛ``,  ``G_T = w_T``,  ``Gₛ = wₛ + (1-ηₛ₊₁λ)·Gₛ₊₁``.

The documentation's page "Theory" derives this, its closed forms, and what follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.decay import Array, check_integer
from polyak.schedules.golden_section import best_of, grid, refined
from polyak.schedules.half_life import HalfLife
from polyak.schedules.profile import Profile

Numbers: TypeAlias = "float | Sequence[float] | Array"
_SHORTEST = 0.1  # a half-life in steps at which β is 0.001, so that the average is the raw parameters
_REFINED = 10  # golden sections after a grid of ratio 2 leave ln h within 0.7·0.618⁸, which is 1.5 %


class Moments(NamedTuple):
    """Of an average, in each direction: its mean, and its variance over the noise; float64 [D]."""

    mean: Array
    variance: Array


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The loss ``½ Σ λ·θ²`` with independent gradient noise, in its D eigendirections.

    Args:
        curvature: λ > 0, one number or one per direction.
        noise: σ ≥ 0, the standard deviation of the gradient's noise.
        start: θ₀, the distance from the minimum at the start.

    Raises:
        ConfigError: an argument is not finite, a curvature is not positive, a noise is negative, or their
            lengths differ.

    Examples:
        >>> from polyak import HalfLife, Profile
        >>> problem = Quadratic(curvature=[1.0, 0.1], noise=1.0, start=1.0)
        >>> raw = problem.excess(Profile.raw(1000), lr=0.1)
        >>> averaged = problem.excess(Profile.from_decay(HalfLife(steps=100), 1000), lr=0.1)
        >>> round(raw, 4), round(averaged, 4)
        (0.0514, 0.0119)

    Source: Polyak & Juditsky 1992 treat the uniform mean; for other profiles see the module.
    """

    curvature: Array
    noise: Array
    start: Array

    def __init__(self, curvature: Numbers, noise: Numbers, start: Numbers) -> None:
        given = {"curvature": curvature, "noise": noise, "start": start}
        arrays = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in given.items()}
        for name, array in arrays.items():
            if array.ndim != 1 or not np.isfinite(array).all():
                raise ConfigError(f"{name}={given[name]!r}: must be one finite number or one per direction.")
        if not (arrays["curvature"] > 0).all():
            raise ConfigError(f"curvature={curvature!r}: must be positive; flat directions do not train.")
        if not (arrays["noise"] >= 0).all():
            raise ConfigError(f"noise={noise!r}: a standard deviation cannot be negative.")
        try:
            equal = np.broadcast_arrays(*arrays.values())
        except ValueError as error:
            lengths = ", ".join(f"{name} has {len(array)}" for name, array in arrays.items())
            raise ConfigError(f"{lengths}: give one number, or one per direction, of each.") from error
        for name, array in zip(given, equal, strict=True):
            object.__setattr__(self, name, array)

    def moments(self, profile: Profile, lr: Numbers) -> Moments:
        """Mean ``G₀·θ₀`` and variance ``σ²·Σₛ ηₛ²Gₛ²`` of the average in each direction.

        Args:
            profile: of an average of T steps.
            lr: η, one number or one per step, [T].

        Returns:
            Two arrays, float64 [D].

        Raises:
            ConfigError: ``lr`` is negative, not finite or not of this length, or training diverges.
        """
        rates = _rates(lr, profile.steps)
        with np.errstate(over="ignore", invalid="ignore"):
            initial, squares = responses(profile.weights(), rates, self.curvature)
            moments = Moments(initial * self.start, squares * self.noise**2)
        if not np.isfinite(moments).all():
            worst = float(rates.max(initial=0.0) * self.curvature.max())
            raise ConfigError(f"lr times curvature reaches {worst:.3g}: above 2 training diverges.")
        return moments

    def excess(self, profile: Profile, lr: Numbers) -> float:
        """The expected loss of the average above the minimum, ``½ Σ λ·(G₀²θ₀² + σ²·Σₛ ηₛ²Gₛ²)``.

        Args:
            profile: of an average of T steps; ``Profile.raw(T)`` for the raw parameters.
            lr: η, one number or one per step, [T].

        Returns:
            The excess loss, in the unit of the loss.

        Raises:
            ConfigError: as ``moments``.
        """
        mean, variance = self.moments(profile, lr)
        return float(0.5 * self.curvature @ (mean**2 + variance))


def responses(weights: Array, rates: Array, curvature: Array) -> tuple[Array, Array]:
    """``G₀`` and ``Σₛ ηₛ²Gₛ²`` of ``Gₛ = wₛ + (1-ηₛ₊₁λ)·Gₛ₊₁``, ``G_T = w_T``, in each direction.

    Args:
        weights: w, [T + 1].
        rates: η, [T].
        curvature: λ, [D].
    """
    later, squares = np.zeros((2, len(curvature)))
    for weight, eta in zip(weights[:0:-1], rates[::-1], strict=True):  # s = T … 1
        response = weight + later
        squares += (eta * response) ** 2
        later = (1 - eta * curvature) * response
    return weights[0] + later, squares


def suggest_half_life(steps: int, lr: Numbers, problem: Quadratic) -> HalfLife:
    """The half-life whose average has the least expected loss after a run, by theory.

    A grid of ratio 2 over ``problem.excess``, refined by golden section. It is exact for the problem given;
    what it cannot know is the spectrum and the noise of your network, so take it as a place to start a sweep.
    It goes through the run some thirty times: a second or two for 10,000 steps and a hundred directions.

    Args:
        steps: T, the length of the run, ≥ 1.
        lr: η, one number or one per step, [T]: the schedule of the run.
        problem: curvatures, noise and distances from the minimum.

    Returns:
        ``HalfLife(steps=h)``, h from 0.1 to 10·T; an h below one step means that no average helps.

    Raises:
        ConfigError: as ``Quadratic.moments``, or ``steps`` is no whole number ≥ 1.

    Examples:
        >>> problem = Quadratic(curvature=[1.0, 0.1, 0.01], noise=0.3, start=1.0)
        >>> round(suggest_half_life(1000, 0.5, problem).steps)
        197

    Source: the recursion of this module.
    """
    check_integer("steps", steps, 1)
    rates, high = _rates(lr, steps), 10.0 * steps

    def loss(half_life: float) -> float:
        return problem.excess(Profile.from_decay(HalfLife(steps=half_life), steps), rates)

    losses = {h: loss(h) for h in grid(_SHORTEST, high, math.ceil(math.log2(high / _SHORTEST)) + 1)}
    for _ in range(_REFINED):
        if (half_life := refined(losses, "min")) is not None:
            losses[half_life] = loss(half_life)
    return HalfLife(steps=best_of(losses, "min"))


def _rates(lr: Numbers, steps: int) -> Array:
    """One learning rate per step."""
    rates = np.asarray(lr, np.float64)
    if rates.ndim == 0:
        rates = np.full(steps, rates)
    if rates.shape != (steps,):
        raise ConfigError(f"lr has shape {rates.shape}: give one number, or one per step, ({steps},).")
    if not (np.isfinite(rates).all() and (rates >= 0).all()):
        raise ConfigError(f"lr={lr!r}: learning rates must be finite and at least 0.")
    return rates
