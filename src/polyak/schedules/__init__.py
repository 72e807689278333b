"""Decays, the profiles of the averages they produce, and mixtures with a target profile. NumPy only."""

from polyak.schedules.adaptive import Adaptive as Adaptive
from polyak.schedules.decay import Constant as Constant
from polyak.schedules.decay import Custom as Custom
from polyak.schedules.decay import Decay as Decay
from polyak.schedules.decay import as_decay as as_decay
from polyak.schedules.decay import compose as compose
from polyak.schedules.half_life import HalfLife as HalfLife
from polyak.schedules.history import History as History
from polyak.schedules.pointwise import Recency as Recency
from polyak.schedules.pointwise import annealed as annealed
from polyak.schedules.posthoc import Solution as Solution
from polyak.schedules.posthoc import solve as solve
from polyak.schedules.posthoc import solve_each as solve_each
from polyak.schedules.power import Power as Power
from polyak.schedules.power import Uniform as Uniform
from polyak.schedules.profile import COPY as COPY
from polyak.schedules.profile import Profile as Profile
from polyak.schedules.profile import Run as Run
from polyak.schedules.replay import replay as replay
from polyak.schedules.schedules import Anneal as Anneal
from polyak.schedules.schedules import Capped as Capped
from polyak.schedules.schedules import Cosine as Cosine
from polyak.schedules.schedules import Debiased as Debiased
from polyak.schedules.schedules import Piecewise as Piecewise
from polyak.schedules.schedules import Ramp as Ramp
from polyak.schedules.schedules import Warmup as Warmup
