"""Averages inside trainers: one file for each, which says when; what is averaged and how is ``polyak.EMA``.

None of the files is imported here, so only the trainer that is used has to be installed.
"""
