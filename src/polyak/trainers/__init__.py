"""Averaging in trainers: one file for each, which decides when ``polyak.EMA`` is updated and evaluated.

None of the files is imported here, so only the trainer in use has to be installed.
"""
