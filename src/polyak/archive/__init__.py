"""Afterwards: snapshots of a run's averages, and the other averages that can be made from them."""

from polyak.archive.archive import Archive as Archive
from polyak.archive.synthesis import Reach as Reach
from polyak.archive.synthesis import Synthesis as Synthesis
from polyak.archive.synthesis import synthesizable as synthesizable
from polyak.archive.synthesis import synthesize as synthesize
