"""Their bytes: every other kind of checkpoint, opened as named tensors, and what each library means by it."""
