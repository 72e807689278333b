"""Bytes: files that say what they hold, written whole or not at all."""

from polyak.checkpoints.read import Average as Average
from polyak.checkpoints.read import load as load
