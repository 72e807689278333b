"""Averaging checkpoints: ``polyak.average_checkpoints`` and ``polyak average``."""

from polyak.merge.average import Averaged as Averaged
from polyak.merge.average import average_checkpoints as average_checkpoints
