"""The C kernel's front, shared by ``polyak.torch`` and ``polyak.paddle``."""

NO_KERNEL = "the C kernel was not built: with a C compiler, pip install --force-reinstall --no-deps polyak"
