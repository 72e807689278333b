"""Decays for another batch size: one step of k times the batch stands for k of the old steps.

Legend: k the batch ratio; B(t, n) the product of the n decays after step t, as in ``decay.py``. Between whole
steps it is log-linear: a part p of a step with decay β multiplies by βᵖ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.by_name import ByName
from polyak.schedules.decay import Array, Config, Constant, Decay, DecayLike, as_decay, check
from polyak.schedules.half_life import HalfLife
from polyak.schedules.power import Power, Uniform
from polyak.schedules.warmup import Debiased

_WHOLE = 1e-9  # steps; nearer to a whole step a time is that step, since 49·(1/49) is not 1 in binary


@dataclass(frozen=True)
class Scaled(Decay):
    """A decay for k times the batch: ``βₜ = B((t-1)·k, k)`` of the other, log-linear between its steps.

    Args:
        decay: counted in steps.
        ratio: k > 0, the new batch size over the old one.

    Raises:
        ConfigError: k is not positive, or the decay counts samples or tokens.

    Examples:
        >>> from polyak import Warmup, compose
        >>> Scaled(Warmup(0.999), 4)(3) == compose(Warmup(0.999), 8, 4)
        True

    Source: Busbridge et al. 2023, "How to Scale Your EMA", arXiv 2307.13813, for schedules of any shape.
    """

    decay: Decay
    ratio: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "decay", as_decay(self.decay))
        _check_ratio("ratio", self.ratio)
        if self.decay.unit != "steps":
            raise ConfigError(
                f"decay={self.decay} counts {self.decay.unit}, which do not depend on the batch size."
            )

    @property
    def constant(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.decay.constant

    @property
    def ahead(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.decay.ahead

    def effort(self, k: int) -> int:
        return self.decay.effort(math.ceil(k * self.ratio)) + 2 * self.decay.effort(1)

    def betas(self, t: Array) -> Array:
        return self.products(t - 1, 1)

    def products(self, t: Array, k: int) -> Array:
        if float(self.ratio).is_integer():
            n = int(k * self.ratio)
            return self.decay.betas(t + 1) if n == 1 else self.decay.products(t * self.ratio, n)
        return between(self.decay, _snapped(t * self.ratio), _snapped((t + k) * self.ratio))

    def to_config(self) -> Config:
        return {"kind": "Scaled", "decay": self.decay.to_config(), "ratio": self.ratio}

    @classmethod
    def _from_arguments(cls, arguments: Config) -> Decay:
        return cls(Decay.from_config(arguments["decay"]), arguments["ratio"])


def between(decay: Decay, begin: Array, end: Array) -> Array:
    """The product of the decays from one time to another, 0 ≤ begin < end, in steps and parts of a step.

    ``β_(n+1)^(n+1-begin) · B(n+1, m-n-1) · β_(m+1)^(end-m)`` with n = ⌊begin⌋, m = ⌊end⌋; within one step
    ``β_(n+1)^(end-begin)``.
    """
    first, last = np.floor(begin), np.floor(end)
    head = decay.betas(first + 1) ** (np.minimum(first + 1, end) - begin)
    part = np.where(last > first, end - last, 0.0)  # of the last step, unless it is the first
    tail = decay.betas(np.where(part > 0, last + 1, first + 1)) ** part
    return head * tail * _middle(decay, first + 1, np.maximum(last - first - 1, 0))


def _middle(decay: Decay, t: Array, counts: Array) -> Array:
    """``B(t, n)`` for whole steps, whose number n differs between elements by one at most."""
    out = np.ones_like(t)
    for n in np.unique(counts[counts > 0]):
        out[counts == n] = decay.products(t[counts == n], int(n))
    return out


def _snapped(t: Array) -> Array:
    """Times within rounding of a whole step are that step; a decay of 0 there would reach into the next."""
    whole = np.rint(t)
    return np.where(np.abs(t - whole) < _WHOLE, whole, t)


@overload
def scale_decay(decay: float, batch_ratio: float) -> float: ...
@overload
def scale_decay(decay: Decay | Callable[[int], float], batch_ratio: float) -> Decay: ...
@overload
def scale_decay(decay: ByName, batch_ratio: float) -> ByName: ...
def scale_decay(decay: DecayLike | ByName, batch_ratio: float) -> float | Decay | ByName:
    """The decay that keeps an average the same when the batch size changes by a factor k.

    A step of k times the batch goes through k times the samples, so ``β → βᵏ`` and ``h → h/k``. The rule is
    the same for SGD, whose learning rate is scaled by k, and for Adam, scaled by √k.

    Args:
        decay: a number, a schedule, a function of the step, or a ``ByName``.
        batch_ratio: k > 0, the new batch size over the old one; below 1 for a smaller batch.

    Returns:
        A number for a number. ``Constant``, ``Debiased`` and ``HalfLife(steps=…)`` of the scaled value. As it
        is what is measured in samples, tokens or shares of the run: ``HalfLife(samples=…)``, ``Uniform``,
        ``Power``. For all others ``Scaled``, one step of which is k steps of the old. For a ``ByName`` one
        with each of its decays scaled.

    Raises:
        ConfigError: k is not positive, or the decay is none.

    Examples:
        >>> round(scale_decay(0.996, 256 / 4096), 5)  # a teacher's decay for batch 4096, at batch 256
        0.99975
        >>> from polyak import HalfLife
        >>> scale_decay(HalfLife(steps=2000), 4)
        HalfLife(steps=500.0)

    Source: Busbridge et al. 2023, "How to Scale Your EMA", arXiv 2307.13813.
    """
    _check_ratio("batch_ratio", batch_ratio)
    if isinstance(decay, ByName):
        return ByName({pattern: scale_decay(one, batch_ratio) for pattern, one in decay.rules})
    old = as_decay(decay)
    match old:
        case Constant(beta):
            return beta**batch_ratio if old is not decay else Constant(beta**batch_ratio)
        case Debiased(beta):
            return Debiased(beta**batch_ratio)
        case HalfLife(steps=float() | int() as steps):
            return replace(old, steps=steps / batch_ratio)
        case HalfLife() | Uniform() | Power():
            return old
        case Scaled(inner, ratio):
            return Scaled(inner, ratio * batch_ratio)
        case _:
            return Scaled(old, batch_ratio)


def _check_ratio(name: str, ratio: float) -> None:
    check(name, ratio, "the ratio of two batch sizes must be positive and finite", 0 < ratio < math.inf)
