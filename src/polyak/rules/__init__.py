"""How much: decays, the profiles they grow, and the mixtures that reach a wanted profile. NumPy only."""

from polyak.rules.decay import Constant as Constant
from polyak.rules.decay import Decay as Decay
from polyak.rules.decay import HalfLife as HalfLife
from polyak.rules.decay import as_decay as as_decay
from polyak.rules.decay import compose as compose
from polyak.rules.pointwise import Recency as Recency
from polyak.rules.pointwise import annealed as annealed
from polyak.rules.posthoc import Solution as Solution
from polyak.rules.posthoc import solve as solve
from polyak.rules.posthoc import solve_each as solve_each
from polyak.rules.profile import COPY as COPY
from polyak.rules.profile import History as History
from polyak.rules.profile import Profile as Profile
from polyak.rules.profile import Run as Run
from polyak.rules.replay import replay as replay
from polyak.rules.schedules import Anneal as Anneal
from polyak.rules.schedules import Capped as Capped
from polyak.rules.schedules import Cosine as Cosine
from polyak.rules.schedules import Debiased as Debiased
from polyak.rules.schedules import Piecewise as Piecewise
from polyak.rules.schedules import Power as Power
from polyak.rules.schedules import Ramp as Ramp
from polyak.rules.schedules import Uniform as Uniform
from polyak.rules.schedules import Warmup as Warmup
