"""Checkpoints averaged into one: ``polyak.average`` and ``polyak average``."""

from polyak.merge.average_checkpoints import Averaged as Averaged
