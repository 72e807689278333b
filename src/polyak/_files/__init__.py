"""polyak's own files. What cannot be read or written raises ``CheckpointError``, which names the file."""
