"""Decays that begin with a short memory, so that θ₀ is soon forgotten; those of most runs.

Notation as in ``decay.py``: t counts from 1, βₜ is the decay applied at t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyak.schedules.decay import Array, Decay, check, check_beta


@dataclass(frozen=True)
class Debiased(Decay):
    """Bias correction as a schedule: no weight ever rests on θ₀.

    ``βₜ = (β - βᵗ) / (1 - βᵗ)`` is exactly ``v̂ₜ = vₜ/(1-βᵗ)`` for ``vₜ = β·vₜ₋₁ + (1-β)·θₜ``, v₀ = 0,
    at every t and with no division of the stored tensors. β₁ = 0: the first update copies.

    Args:
        beta: β in [0, 1]. β = 1 is the limit, the uniform average.

    Raises:
        ConfigError: β is outside [0, 1].

    Examples:
        >>> Debiased(0.9)(1)
        0.0
        >>> round(Debiased(0.9)(1000), 6)
        0.9

    Source: the correction of Kingma & Ba 2015 (Adam), arXiv 1412.6980, §3, rewritten as a decay.
    """

    beta: float
    closed = True

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)

    def betas(self, t: Array) -> Array:
        return self.products(t - 1, 1)

    def products(self, t: Array, k: int) -> Array:
        # The product telescopes to βᵏ(1-βᵗ)/(1-βᵗ⁺ᵏ). expm1 keeps 1-βᵗ exact for β near 1, and β = 1
        # is its limit t/(t+k). β = 0 copies at every step.
        if self.beta == 0:
            return np.zeros_like(t)
        if self.beta == 1:
            return t / (t + k)
        log = math.log(self.beta)
        return self.beta**k * np.expm1(t * log) / np.expm1((t + k) * log)


@dataclass(frozen=True)
class Warmup(Decay):
    """A decay that grows with the run: short memory first, β at last.

    ``βₜ = clip(1 - (1 + s/γ)^(-p), min_decay, β)`` with ``s = max(0, t - after - 1)``; βₜ = 0 while s = 0.
    γ = 1, p = 2/3 reach 0.999 at 31 k steps and 0.9999 at 1 M; p = 3/4 at 10 k and 215 k.

    Args:
        beta: the largest decay, in [0, 1].
        gamma: γ > 0, the time scale in steps.
        power: p > 0.
        min_decay: the smallest decay once s > 0, in [0, β].
        after: further steps that copy before the warm-up begins, ≥ 0; the first always does.

    Raises:
        ConfigError: an argument is outside its range.

    Examples:
        >>> [round(Warmup(0.9998)(t), 4) for t in (1, 2, 3, 1000)]
        [0.0, 0.37, 0.5193, 0.99]

    Source: the schedule of timm's ModelEmaV3 and of k-diffusion.
    """

    beta: float
    gamma: float = 1.0
    power: float = 2 / 3
    min_decay: float = 0.0
    after: int = 0

    def __post_init__(self) -> None:
        check_beta("beta", self.beta)
        check(
            "gamma",
            self.gamma,
            "the warm-up's time scale must be positive and finite",
            0 < self.gamma < math.inf,
        )
        check(
            "power", self.power, "the warm-up's power must be positive and finite", 0 < self.power < math.inf
        )
        check(
            "min_decay",
            self.min_decay,
            f"must lie in [0, beta={self.beta}]",
            0 <= self.min_decay <= self.beta,
        )
        check("after", self.after, "steps cannot be negative", self.after >= 0)

    def betas(self, t: Array) -> Array:
        s = np.maximum(0.0, t - self.after - 1)
        grown = np.clip(1 - (1 + s / self.gamma) ** -self.power, self.min_decay, self.beta)
        return np.where(s > 0, grown, 0.0)
