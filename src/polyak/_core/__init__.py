"""What an average does, whatever the framework: its verbs, its time, its state, its files.

``polyak.torch`` and ``polyak.paddle`` say what a model and a tensor are (``tensors.TensorOps``,
``averages.AverageSet``); everything they have in common is here, and imports neither.
"""
