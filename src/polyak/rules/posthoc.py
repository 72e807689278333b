"""Which stored averages add up to the one you want: a least-squares problem over profiles.

Legend: n stored profiles, T steps; S is [n, T + 1], one profile a row; w* is [T + 1], the target;
c is [n], the coefficients. ``Σᵢ cᵢ·avgᵢ`` has the profile Sᵀc, so the c that brings Sᵀc nearest to w*
synthesises the target from what is stored, whatever decays, tracks and checkpoints it came from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polyak.errors import ConfigError
from polyak.rules.decay import Array
from polyak.rules.profile import Profile

EXACT = 1e-13  # smallest over largest eigenvalue below which float64 cannot tell two mixtures apart


class Solution(NamedTuple):
    """What ``solve`` found.

    coefficients: c, float64 [n], with ``Σ cᵢ·(sum of profile i) = 1``.
    error: ``‖Sᵀc - w*‖ / ‖w*‖``, how far the synthesised profile is from the target.
    noise_gain: ``Σ|cᵢ|``, by how much rounding errors of the stored averages can grow; 1 is best.
    """

    coefficients: Array
    error: float
    noise_gain: float


def solve(profiles: Sequence[Profile], target: Profile, ridge: float = EXACT) -> Solution:
    """The mixture of stored averages whose profile is nearest to the target's.

    ``min ‖Sᵀc - w*‖`` subject to ``Σc = 1``, from the exact Gram matrix ``G = S·Sᵀ``, summed over
    windows of t so that memory does not grow with T.

    Args:
        profiles: the stored averages' profiles, at least one, of one training run.
        target: the wanted profile; its last step should not lie beyond the newest stored one.
        ridge: added to the eigenvalues of the Gram matrix of unit-norm profiles, as a share of the
            largest. Averages stored with rounding errors want more of it: it trades profile error for a
            smaller noise gain.

    Returns:
        Coefficients, relative profile error and noise gain.

    Raises:
        ConfigError: no profiles.

    Examples:
        >>> halves = [Profile.from_decay(0.5, 20), Profile.raw(20)]
        >>> solve(halves, 0.5 * halves[0] + 0.5 * halves[1]).coefficients.round(6)
        array([0.5, 0.5])

    Source: Karras et al. 2024, arXiv 2312.02696, §3.2, without its restriction to power functions.
    """
    return solve_each(profiles, [target], ridge)[0]


def solve_each(
    profiles: Sequence[Profile], targets: Sequence[Profile], ridge: float = EXACT
) -> list[Solution]:
    """``solve`` for several targets, with one pass over the profiles.

    Raises:
        ConfigError: no profiles.
    """
    if not profiles:
        raise ConfigError("profiles=[]: post-hoc synthesis needs at least one stored average.")
    n = len(profiles)
    gram, total = gram_of([*profiles, *targets])
    solutions: list[Solution] = []
    for i in range(n, n + len(targets)):
        coefficients = _constrained(gram[:n, :n], gram[:n, i], total[:n], ridge)
        chosen = [*range(n), i]
        residual = np.append(coefficients, -1.0)
        square = float(residual @ gram[np.ix_(chosen, chosen)] @ residual)
        error = math.sqrt(max(0.0, square) / float(gram[i, i]))
        solutions.append(Solution(coefficients, error, float(np.abs(coefficients).sum())))
    return solutions


def gram_of(profiles: Sequence[Profile]) -> tuple[Array, Array]:
    """``G = Σₜ s(t)·s(t)ᵀ`` and ``Σₜ s(t)`` over all points t, s(t) being the profiles' weights there."""
    points = 1 + max(profile.steps for profile in profiles)
    gram, total = np.zeros((len(profiles), len(profiles))), np.zeros(len(profiles))
    for rows in zip(*(profile.windows(points) for profile in profiles), strict=True):
        block: Array = np.stack([window for _, window in rows])
        gram += block @ np.transpose(block)
        total += block.sum(axis=1)
    return gram, total


def _constrained(gram: Array, right: Array, total: Array, ridge: float) -> Array:
    """C that minimises ``cᵀGc - 2cᵀb`` subject to ``totalᵀc = 1``.

    Profiles are scaled to unit norm first; then ``c = G⁻¹b + μ·G⁻¹·total`` with μ from the constraint.
    Neighbouring snapshots are nearly parallel: where float64 cannot tell them apart, the smallest
    ridge that can is added, which spreads the weight over the twins instead of setting them against
    each other.
    """
    norms: Array = np.sqrt(gram.diagonal())
    scaled = gram / np.outer(norms, norms)
    values, vectors = np.linalg.eigh(scaled)
    shift = max(0.0, ridge * values[-1] - values[0])
    both = np.stack([right, total]) / norms
    free, pull = ((both @ vectors) / (values + shift)) @ np.transpose(vectors)
    constraint = total / norms
    return (free + (1 - constraint @ free) / (constraint @ pull) * pull) / norms
