"""Reading other libraries' files. Unreadable files raise ``CheckpointError``, which names the file."""
