"""Decays given as a half-life."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from polyak.errors import ConfigError
from polyak.schedules.decay import Array, Decay, Unit, check
from polyak.schedules.power import Power, share_to_gamma


@dataclass(frozen=True, repr=False)
class HalfLife(Decay):
    """A decay given as a half-life: after it, the weight of everything before is halved.

    ``β = 2^(-1/h)`` per step, sample or token. In samples or tokens, the average does not depend on the batch
    size; pass their number to each ``update``.

    As a share s, ``βₜ = (1 - 1/t)^(γ+1)`` with ``γ = ln ½ / ln(1-s) - 1``: after any number of steps T the
    latest s·T have half the weight and θ₀ has none, so one number fits runs of every length.

    Args:
        steps: h in training steps, > 0.
        samples: h in samples, > 0.
        tokens: h in tokens, > 0.
        share: s in (0, ½], of the steps since averaging began; ½ is the uniform mean. Exactly one of the
            four is given.

    Raises:
        ConfigError: none or several are given, the half-life is not positive, or the share is above ½.

    Examples:
        >>> from polyak import Profile, compose
        >>> h = HalfLife(steps=1000)
        >>> round(compose(h, 0, 1000), 12)
        0.5
        >>> h = HalfLife(share=0.05)
        >>> [round(Profile.from_decay(h, steps).half_life) for steps in (1000, 100_000)]
        [50, 5000]

    Source: the scaling of β with the batch size is that of Busbridge et al. 2023, arXiv 2307.13813; a share
    is the power profile of Karras et al. 2024, arXiv 2312.02696, solved for its half-life.
    """

    steps: float | None = None
    samples: float | None = None
    tokens: float | None = None
    share: float | None = None
    closed = True

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(given) != 1:
            raise ConfigError(f"HalfLife({given}): give exactly one of steps=, samples=, tokens= or share=.")
        name, value = next(iter(given.items()))
        if name == "share":
            rule = (
                "a share of the training so far must lie in (0, 0.5], as 0.05 for 5 %. At 0.5 all steps have "
                "the same weight; a longer half-life would give early steps more than late ones"
            )
            check(name, value, rule, 0 < value <= 0.5)
        else:
            check(name, value, "a half-life must be positive and finite", 0 < value < math.inf)

    def __repr__(self) -> str:
        (name, value), *_ = [(k, v) for k, v in self.to_config().items() if k != "kind"]
        return f"HalfLife({name}={value!r})"

    @property
    def unit(self) -> Unit:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.samples is not None:
            return "samples"
        return "tokens" if self.tokens is not None else "steps"

    @property
    def constant(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.share is None

    @cached_property
    def _power(self) -> Power | None:
        return None if self.share is None else Power(gamma=share_to_gamma(self.share))

    def betas(self, t: Array) -> Array:
        return self.products(t - 1, 1)

    def products(self, t: Array, k: int | Array) -> Array:
        if self._power is not None:
            return self._power.products(t, k)
        return np.full_like(t, 2.0 ** (-k / float(self.steps or self.samples or self.tokens or 0.0)))
