"""Everybody else's files. What cannot be read raises ``CheckpointError``, which names the file."""
