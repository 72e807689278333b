"""Decays, the profiles of the averages they produce, and mixtures with a target profile. NumPy only.

What an EMA needs is imported; the rest when it is first used, since it takes as long again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyak._lazy import lazy_names
from polyak.schedules.adaptive import Adaptive as Adaptive
from polyak.schedules.by_name import ByName as ByName
from polyak.schedules.decay import Constant as Constant
from polyak.schedules.decay import Custom as Custom
from polyak.schedules.decay import Decay as Decay
from polyak.schedules.decay import as_decay as as_decay
from polyak.schedules.decay import compose as compose
from polyak.schedules.history import History as History
from polyak.schedules.profile import COPY as COPY
from polyak.schedules.profile import Profile as Profile
from polyak.schedules.profile import Run as Run
from polyak.schedules.replay import replay as replay  # or its module would have the name
from polyak.schedules.warmup import Debiased as Debiased
from polyak.schedules.warmup import Warmup as Warmup

if TYPE_CHECKING:
    from polyak.schedules.half_life import HalfLife as HalfLife
    from polyak.schedules.pointwise import Recency as Recency
    from polyak.schedules.pointwise import annealed as annealed
    from polyak.schedules.posthoc import Solution as Solution
    from polyak.schedules.posthoc import solve as solve
    from polyak.schedules.posthoc import solve_each as solve_each
    from polyak.schedules.power import Power as Power
    from polyak.schedules.power import Uniform as Uniform
    from polyak.schedules.scaled import Scaled as Scaled
    from polyak.schedules.scaled import scale_decay as scale_decay
    from polyak.schedules.schedules import Anneal as Anneal
    from polyak.schedules.schedules import Capped as Capped
    from polyak.schedules.schedules import Cosine as Cosine
    from polyak.schedules.schedules import Piecewise as Piecewise
    from polyak.schedules.schedules import Ramp as Ramp
    from polyak.schedules.theory import Moments as Moments
    from polyak.schedules.theory import Quadratic as Quadratic
    from polyak.schedules.theory import suggest_half_life as suggest_half_life

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "polyak.schedules.half_life": ("HalfLife",),
        "polyak.schedules.pointwise": ("Recency", "annealed"),
        "polyak.schedules.posthoc": ("Solution", "solve", "solve_each"),
        "polyak.schedules.power": ("Power", "Uniform"),
        "polyak.schedules.scaled": ("Scaled", "scale_decay"),
        "polyak.schedules.schedules": ("Anneal", "Capped", "Cosine", "Piecewise", "Ramp"),
        "polyak.schedules.theory": ("Moments", "Quadratic", "suggest_half_life"),
    },
)
