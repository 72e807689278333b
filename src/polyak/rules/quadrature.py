"""A profile carried out on a few points of the trajectory: the coefficients of raw checkpoints.

Legend: n checkpoints at steps s₁ < … < sₙ; w is the profile, [T + 1]; c is [n].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyak.errors import ConfigError
from polyak.rules.decay import Array
from polyak.rules.profile import Profile


def quadrature(profile: Profile, steps: Sequence[int]) -> Array:
    """What each raw checkpoint weighs in the average that has this profile.

    ``cᵢ = Σₜ wₜ·hatᵢ(t)``, hatᵢ being 1 at sᵢ, 0 at the other checkpoints, linear between neighbours and
    constant before the first and after the last. ``Σ cᵢ·θ(sᵢ)`` is therefore the average of the trajectory
    with straight lines drawn between the checkpoints, and exact when every step was kept.

    Checkpoints are points of the trajectory, not averages: their own profiles do not overlap, so the
    mixture whose profile is nearest to the wanted one (``solve``) says nothing about the steps between.

    Args:
        profile: the wanted average's.
        steps: the training step of each checkpoint, ≥ 0, each once, in any order.

    Returns:
        c, float64 [n], in the order of ``steps``; its sum is the profile's.

    Raises:
        ConfigError: no steps, a negative one, or one that stands there twice.

    Examples:
        >>> quadrature(Profile.from_decay(0.5, steps=2), [0, 2])
        array([0.375, 0.625])
        >>> quadrature(Profile.raw(15), [10, 30, 20])
        array([0.5, 0. , 0.5])
    """
    if not steps or min(steps) < 0 or len(set(steps)) < len(steps):
        raise ConfigError(f"steps={list(steps)}: give each checkpoint its own step, at least 0.")
    order = np.argsort(steps)
    nodes = np.asarray(steps, np.float64)[order]
    sums = np.zeros(len(nodes))
    for low, window in profile.windows(profile.steps + 1):
        place = np.interp(low + np.arange(len(window)), nodes, np.arange(len(nodes)))
        left = np.minimum(place.astype(np.intp), max(0, len(nodes) - 2))
        share = place - left
        sums += np.bincount(left, window * (1 - share), len(nodes))
        if len(nodes) > 1:
            sums += np.bincount(left + 1, window * share, len(nodes))
    out = np.empty_like(sums)
    out[order] = sums
    return out
