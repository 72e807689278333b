"""Weights for checkpoints by their age alone.

Legend: n checkpoints written at steps t₀ < t₁ < … < t_m; wᵢ is the weight of the i-th, ``Σ wᵢ = 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.decay import Array

Shape: TypeAlias = Literal["linear", "cosine", "1-sqrt"]

# S(x), the integral from 0 to x of a learning rate's factor s, which falls from s(0) = 1 to s(1) = 0.
_INTEGRALS: Mapping[str, Callable[[Array], Array]] = {
    "linear": lambda x: x - x**2 / 2,  # s = 1 - x
    "cosine": lambda x: x / 2 + np.sin(np.pi * x) / (2 * np.pi),  # s = (1 + cos πx)/2
    "1-sqrt": lambda x: x - 2 * x**1.5 / 3,  # s = 1 - √x
}


@dataclass(frozen=True)
class Recency:
    """Weights that halve with every ``steps`` of age: ``wᵢ ∝ 2^(-(t_m - tᵢ)/steps)``.

    Unlike a ``HalfLife``, which accounts for the profiles of the checkpoints, it weights them directly,
    averages and unidentified weights alike.

    Args:
        steps: training steps, > 0.

    Raises:
        ConfigError: ``steps`` is not a positive number.

    Examples:
        >>> Recency(steps=100).weights([100, 200]).round(4)
        array([0.3333, 0.6667])
    """

    steps: float

    def __post_init__(self) -> None:
        if not (self.steps > 0 and math.isfinite(self.steps)):
            raise ConfigError(f"Recency(steps={self.steps}): must be a positive number of training steps.")

    def weights(self, steps: Sequence[int]) -> Array:
        """wᵢ, float64 [n], of checkpoints written at these steps."""
        ages = max(steps) - np.asarray(steps, np.float64)
        weights = np.exp2(-ages / self.steps)
        return weights / weights.sum()


def annealed(steps: Sequence[int], shape: Shape) -> Array:
    """The weights of a mean that approximates a decaying learning rate.

    ``Σ wᵢ·θᵢ = θ₀ + Σᵢ aᵢ·(θᵢ - θᵢ₋₁)``: the change between two checkpoints is scaled by aᵢ, the mean factor
    of a learning rate that decays from t₀ to t_m over that time; so ``w₀ = 1 - a₁``, ``wᵢ = aᵢ - aᵢ₊₁`` and
    ``w_m = a_m``.

    Args:
        steps: of the checkpoints, increasing.
        shape: of the learning rate.

    Returns:
        wᵢ, float64 [n], none negative.

    Raises:
        ConfigError: no such shape.

    Examples:
        >>> annealed([100, 200, 300], "linear")
        array([0.25, 0.5 , 0.25])

    Source: Tian et al. 2025, arXiv 2507.17634 (checkpoint merging in place of a decaying learning rate), with
    the rate's mean over each interval, so that the steps need not be equidistant.
    """
    if shape not in _INTEGRALS:
        raise ConfigError(f"shape={shape!r}: must be one of {', '.join(_INTEGRALS)}.")
    if len(steps) < 2:
        return np.ones(len(steps))
    x = (np.asarray(steps, np.float64) - steps[0]) / (steps[-1] - steps[0])
    means = np.diff(_INTEGRALS[shape](x)) / np.diff(x)
    return -np.diff(np.concatenate([[1.0], means, [0.0]]))
