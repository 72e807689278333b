"""The framework-independent core: public methods, counters, state and files.

``polyak.torch`` and ``polyak.paddle`` implement tensors (``tensors.TensorOps``) and models (``framework``);
everything they share is here, and imports neither.
"""
