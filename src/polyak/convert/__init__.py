"""Converting other libraries' checkpoints to polyak's format, and back."""
