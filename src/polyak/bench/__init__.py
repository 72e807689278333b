"""The cost of an average on this machine: polyak's engines beside the memory itself.

`shapes` builds the model, `contender` wraps the engines, `measure` times them, `cost` is the arithmetic of
bytes and the advice, `run` does all of it.
"""
