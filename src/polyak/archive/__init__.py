"""Snapshots of a run's averages, and synthesis of other averages from them after training."""

from polyak.archive.archive import Archive as Archive
from polyak.archive.synthesis import Reach as Reach
from polyak.archive.synthesis import Synthesis as Synthesis
from polyak.archive.synthesis import synthesizable as synthesizable
from polyak.archive.synthesis import synthesize as synthesize
