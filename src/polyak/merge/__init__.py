"""Checkpoints averaged into one: ``polyak.average`` and ``polyak average``."""
