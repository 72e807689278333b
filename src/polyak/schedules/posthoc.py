"""The mixture of stored averages nearest to a target: its best linear estimate.

Legend: n stored averages, T steps, N parameters; wᵢ(t) is the weight of θₜ in average i, w* that in the
target; Rᵢ(t) = wᵢ(t) + wᵢ(t+1) + … + wᵢ(T); c is [n], the coefficients.

Training moves the parameters in steps, ``θₜ = θₜ₋₁ + εₜ``, of which an average is a weighted sum:
``avgᵢ = θ₀ + Σₜ Rᵢ(t)·εₜ``. For a random walk, ``E‖εₜ‖² = vₜ`` and E⟨εₛ, εₜ⟩ = 0, the squared error of the
mixture is

    ``E‖Σᵢ cᵢ·avgᵢ - avg*‖² = Σₜ vₜ·(Σᵢ cᵢ·Rᵢ(t) - R*(t))² + Σᵢ cᵢ²·ρᵢ``,

where ρᵢ is the squared rounding error of the stored avgᵢ. The c that minimises it is the best linear unbiased
estimate; for raw checkpoints it is linear interpolation between neighbours.

Karras et al. minimise ``Σₜ (Σᵢ cᵢ·wᵢ(t) - w*(t))²`` instead, as if parameters at different steps were
uncorrelated. On real runs the error for wide averages is then ten times as large (``experiments/posthoc``),
and its expected size is not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.decay import Array
from polyak.schedules.profile import Profile

_WELL_CONDITIONED = 1e-13  # eigenvalues below this share of the largest are rounding errors of float64


class Movement(NamedTuple):
    """The parameters' speed: ``E‖θₜ - θₜ₋₁‖²`` for the steps up to each end, the last for all later ones.

    ends: training steps, ascending.  rates: one for each, in squared units of the parameters.
    """

    ends: Sequence[int]
    rates: Sequence[float]

    def at(self, t: Array) -> Array:
        """vₜ for an array of steps."""
        places = np.minimum(np.searchsorted(np.asarray(self.ends), t), len(self.ends) - 1)
        return np.asarray(self.rates)[places]


STEADY = Movement((0,), (1.0,))


class Solution(NamedTuple):
    """The result of ``solve``.

    coefficients: c, float64 [n], with ``Σ cᵢ·(sum of profile i) = 1``.
    error: the expected distance between mixture and target, as a share of the distance between the target and
        the raw parameters θ_T.
    noise_gain: ``Σ|cᵢ|``, the largest possible amplification of the stored averages' errors; 1 is best.
    """

    coefficients: Array
    error: float
    noise_gain: float


def solve(
    profiles: Sequence[Profile],
    target: Profile,
    movement: Movement = STEADY,
    rounding: Sequence[float] | None = None,
) -> Solution:
    """The mixture of stored averages nearest to the target.

    ``min Σₜ vₜ·(Σᵢ cᵢ·Rᵢ(t) - R*(t))² + Σᵢ cᵢ²·ρᵢ`` subject to ``Σc = 1``; the sums over t run in windows,
    so that memory does not grow with T.

    Args:
        profiles: the stored averages' profiles, at least one, of one training run.
        target: its profile; the last step should not lie beyond the newest stored one.
        movement: vₜ; by default the same at every step.
        rounding: ρᵢ, the expected square of the rounding error of each stored average, in the unit of vₜ;
            by default none.

    Returns:
        Coefficients, expected relative error and noise gain.

    Raises:
        ConfigError: no profiles.

    Examples:
        >>> halves = [Profile.from_decay(0.5, 20), Profile.raw(20)]
        >>> solve(halves, 0.5 * halves[0] + 0.5 * halves[1]).coefficients.round(6)
        array([0.5, 0.5])

    Source: best linear unbiased estimation (kriging; Cressie 1993, §3.2) of what Karras et al. 2024,
    arXiv 2312.02696, §3.2, call post-hoc EMA.
    """
    return solve_each(profiles, [target], movement, rounding)[0]


def solve_each(
    profiles: Sequence[Profile],
    targets: Sequence[Profile],
    movement: Movement = STEADY,
    rounding: Sequence[float] | None = None,
) -> list[Solution]:
    """``solve`` for several targets, with one pass over the profiles.

    Raises:
        ConfigError: no profiles.
    """
    if not profiles:
        raise ConfigError("profiles=[]: post-hoc synthesis needs at least one stored average.")
    problem = Problem.of(profiles, targets, movement, rounding)
    return [problem.solution(range(len(profiles)), i) for i in range(len(targets))]


class Problem(NamedTuple):
    """The Gram matrix of stored averages and targets, from which any subset of the stored ones can be solved.

    gram: ``Σₜ vₜ·R(t)·R(t)ᵀ`` over stored, targets and raw, in this order.  total: the sum of each profile.
    noise: ρᵢ of the stored.
    """

    gram: Array
    total: Array
    noise: Array

    @classmethod
    def of(
        cls,
        profiles: Sequence[Profile],
        targets: Sequence[Profile],
        movement: Movement,
        rounding: Sequence[float] | None,
    ) -> Problem:
        """One pass over all profiles."""
        raw = Profile.raw(max(profile.steps for profile in (*profiles, *targets)))
        noise = np.zeros(len(profiles)) if rounding is None else np.asarray(rounding, np.float64)
        all_of_them = [*profiles, *targets, raw]
        total = np.array([profile.total for profile in all_of_them])
        return cls(gram_of(all_of_them, movement), total, noise)

    def solution(self, kept: Sequence[int], target: int) -> Solution:
        """The best mixture of the stored averages with these indices, for the target of this number."""
        rows, i, raw = list(kept), len(self.noise) + target, len(self.gram) - 1
        noise, size = self.noise[rows], math.sqrt(self.gram[i, i])
        noisy = self.gram[np.ix_(rows, rows)] + np.diag(noise)
        coefficients = _constrained(noisy, self.gram[rows, i], self.total[rows], size)
        missed = _quadratic(self.gram, [*rows, i], np.append(coefficients, -1.0)) + noise @ coefficients**2
        away = _quadratic(self.gram, [i, raw], np.array([1.0, -1.0]))
        error = math.sqrt(missed / away) if away else math.inf if missed else 0.0
        return Solution(coefficients, error, float(np.abs(coefficients).sum()))


def movement_of(profiles: Sequence[Profile], distances: Sequence[float]) -> Movement:
    """Estimate the parameters' speed from their distances to averages.

    ``E‖avgᵢ - θ_T‖² = Σₜ vₜ·(1 - Rᵢ(t))²``, so each average gives a mean of vₜ over its span; at each step
    the narrowest average is used.

    Args:
        profiles: of averages, each at its own T.
        distances: ``‖avgᵢ - θ_T‖²`` of each, ≥ 0.
    """
    rates: dict[int, tuple[float, float]] = {}
    for profile, distance in zip(profiles, distances, strict=True):
        gram = gram_of([profile, Profile.raw(profile.steps)])
        span = _quadratic(gram, [0, 1], np.array([1.0, -1.0]))
        if span and distance and span < rates.get(profile.steps, (math.inf, 0.0))[0]:
            rates[profile.steps] = span, distance / span
    if not rates:
        return STEADY
    ends = sorted(rates)
    return Movement(ends, [rates[end][1] for end in ends])


def gram_of(profiles: Sequence[Profile], movement: Movement = STEADY) -> Array:
    """``Gᵢⱼ = Σₜ vₜ·Rᵢ(t)·Rⱼ(t)`` over t = 1 … T."""
    points = 1 + max(profile.steps for profile in profiles)
    gram, tail = np.zeros((len(profiles), len(profiles))), np.zeros((len(profiles), 1))
    for rows in zip(*(profile.windows(points) for profile in profiles), strict=True):
        low = rows[0][0]
        weights: Array = np.stack([window for _, window in rows])
        tails = tail + np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
        moved = tails if low else tails[:, 1:]  # nothing leads to θ₀
        rates = movement.at(np.arange(max(low, 1), low + weights.shape[1], dtype=np.float64))
        gram += (moved * rates) @ np.transpose(moved)
        tail = tails[:, :1]
    return gram


def _quadratic(gram: Array, chosen: list[int], vector: Array) -> float:
    return max(0.0, float(vector @ gram[np.ix_(chosen, chosen)] @ vector))


def _constrained(gram: Array, right: Array, total: Array, size: float) -> Array:
    """C that minimises ``cᵀGc - 2cᵀb`` subject to ``totalᵀc = 1``.

    Averages are scaled to one size first; then ``c = G⁻¹b + μ·G⁻¹·total`` with μ from the constraint.
    Neighbouring snapshots are nearly equal: where float64 cannot distinguish them, the smallest sufficient
    ridge is added, which spreads the weight over them instead of giving them opposite signs. θ₀ has size 0:
    its coefficient follows from the constraint. So does that of an average whose size is negligible next to
    the target's ``size``; scaled up, it would dominate the constraint.
    """
    norms: Array = np.sqrt(gram.diagonal())
    largest = max(float(norms.max()), size) or 1.0
    norms[norms < 1e-8 * largest] = largest
    values, vectors = np.linalg.eigh(gram / np.outer(norms, norms))
    floor = _WELL_CONDITIONED * max(values[-1], 1.0)
    shift = max(0.0, floor - values[0])
    both = np.stack([right, total]) / norms
    free, pull = ((both @ vectors) / (values + shift)) @ np.transpose(vectors)
    constraint = total / norms
    found = (free + (1 - constraint @ free) / (constraint @ pull) * pull) / norms
    # Where near-equal averages cancel, rounding leaves the sum 10⁻⁹ off: the smallest coefficient, which has
    # the finest digits, is corrected by the remainder of an exact sum.
    least = int(np.argmin(np.where(total != 0, np.abs(found), np.inf)))
    found[least] += (1 - math.fsum((total * found).tolist())) / total[least]
    return found
