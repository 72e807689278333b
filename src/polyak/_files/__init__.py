"""polyak's own files. Unreadable or unwritable files raise ``CheckpointError``, which names the file."""
