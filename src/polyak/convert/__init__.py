"""Other libraries' checkpoints as ours, and ours as theirs."""
