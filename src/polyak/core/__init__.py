"""What an average does, whatever the framework: its verbs, its time, its state, its files.

``polyak.torch`` and ``polyak.paddle`` say what a model and a tensor are (``tensors.Tensors``,
``averages.Averages``); everything they have in common is here, and imports neither.
"""

NO_KERNEL = "the C kernel was not built: with a C compiler, pip install --force-reinstall --no-deps polyak"
