"""Afterwards: snapshots of a run's averages, and the other averages that can be made from them."""

from polyak.archive.synthesize import Reach as Reach
from polyak.archive.synthesize import Synthesis as Synthesis
