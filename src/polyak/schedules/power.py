"""Averages whose width is a constant share of the run.

Notation as in ``decay.py``; ``wₜ ∝ tᵞ``. After t + k steps the points up to t have the weight B(t, k), which
is exactly ``(t/(t+k))^(γ+1)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.decay import Array, Decay, check

LARGEST_SIGMA_REL = math.sqrt(1 / 12)  # the relative width of a uniform average, γ = 0
SMALLEST_SIGMA_REL = (
    1e-9  # γ = 10⁹ forgets each step at the next, in any run there is; far below σ⁻² overflows
)


@dataclass(frozen=True)
class Uniform(Decay):
    """The plain mean of θ₁ … θₜ (Polyak–Ruppert, SWA): ``βₜ = (t-1)/t``.

    θ₀ has no weight; use ``start=`` to leave out the beginning of training.

    Examples:
        >>> [Uniform()(t) for t in (1, 2, 4)]
        [0.0, 0.5, 0.75]

    Source: Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv 1803.05407.
    """

    closed = True

    def betas(self, t: Array) -> Array:
        return (t - 1) / t

    def products(self, t: Array, k: int) -> Array:
        return t / (t + k)


@dataclass(frozen=True)
class Power(Decay):
    """An average whose width grows with the run, ``wₜ ∝ tᵞ``: ``βₜ = (1 - 1/t)^(γ+1)``.

    σ_rel is the profile's standard deviation as a share of the run:
    ``σ_rel² = (γ+1) / ((γ+2)²·(γ+3))``.

    Args:
        sigma_rel: σ_rel in [10⁻⁹, √(1/12) ≈ 0.2887]; 0.05–0.15 is usual. Or
        gamma: γ ≥ 0. Exactly one of the two is given.

    Raises:
        ConfigError: none or both are given, or one is outside its range.

    Examples:
        >>> round(Power(sigma_rel=0.1).exponent, 3)
        6.937
        >>> Power(gamma=0)(4) == Uniform()(4)
        True

    Source: Karras et al. 2024, arXiv 2312.02696, equations 2 and 3 and appendix C.
    """

    sigma_rel: float | None = None
    gamma: float | None = None
    closed = True

    def __post_init__(self) -> None:
        if (self.sigma_rel is None) == (self.gamma is None):
            raise ConfigError(
                f"Power(sigma_rel={self.sigma_rel}, gamma={self.gamma}): give exactly one of the two."
            )
        if self.sigma_rel is not None:
            rule = f"must lie in [1e-9, √(1/12) ≈ {LARGEST_SIGMA_REL:.4f}], the width of a uniform average"
            fits = SMALLEST_SIGMA_REL <= self.sigma_rel <= LARGEST_SIGMA_REL
            check("sigma_rel", self.sigma_rel, rule, fits)
        if self.gamma is not None:
            check("gamma", self.gamma, "must be finite and at least 0", 0 <= self.gamma < math.inf)

    @property
    def exponent(self) -> float:
        """γ, given directly or by σ_rel."""
        return sigma_rel_to_gamma(self.sigma_rel) if self.sigma_rel is not None else float(self.gamma or 0.0)

    def betas(self, t: Array) -> Array:
        return (1 - 1 / t) ** (self.exponent + 1)

    def products(self, t: Array, k: int | Array) -> Array:
        return (t / (t + k)) ** (self.exponent + 1)


def sigma_rel_to_gamma(sigma_rel: float) -> float:
    """γ of the power profile with relative width σ_rel, for σ_rel in [10⁻⁹, √(1/12)].

    The real root γ ≥ 0 of ``γ³ + 7γ² + (16 - σ⁻²)γ + 12 - σ⁻² = 0``
    (Karras et al. 2024, arXiv 2312.02696, appendix C.2).
    """
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def gamma_to_sigma_rel(gamma: float) -> float:
    """``σ_rel = √((γ+1)/(γ+3)) / (γ+2)`` (Karras et al. 2024, arXiv 2312.02696, equation 3)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def share_to_gamma(share: float) -> float:
    """γ of the power profile whose half-life is this share of the run, for a share in (0, ½].

    The youngest share s of the steps has half the weight when ``B(T-s·T, s·T) = (1-s)^(γ+1) = ½``, so
    ``γ = ln ½ / ln(1-s) - 1``, at every T.
    """
    return max(0.0, -math.log(2) / math.log1p(-share) - 1)
