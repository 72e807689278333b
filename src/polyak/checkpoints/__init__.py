"""Bytes: files that say what they hold, written whole or not at all."""

from polyak.checkpoints.archive import Archive as Archive
from polyak.checkpoints.read import Average as Average
from polyak.checkpoints.read import load as load
from polyak.checkpoints.synthesis import reachable as reachable
from polyak.checkpoints.synthesis import synthesize as synthesize
