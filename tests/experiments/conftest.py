"""Hypothesis for the experiments: no deadline, because a shared machine may pause at any moment."""

from hypothesis import settings

settings.register_profile("polyak", deadline=None, print_blob=True)
settings.load_profile("polyak")
