"""Every decay that a file can name; reading one imports them all."""

from __future__ import annotations

from polyak.schedules.decay import Constant, Decay
from polyak.schedules.half_life import HalfLife
from polyak.schedules.power import Power, Uniform
from polyak.schedules.scaled import Scaled
from polyak.schedules.schedules import Anneal, Capped, Cosine, Piecewise, Ramp
from polyak.schedules.warmup import Debiased, Warmup

KINDS: tuple[type[Decay], ...] = (
    Anneal,
    Capped,
    Constant,
    Cosine,
    Debiased,
    HalfLife,
    Piecewise,
    Power,
    Ramp,
    Scaled,
    Uniform,
    Warmup,
)
