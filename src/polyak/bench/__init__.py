"""The cost of an average on this machine: polyak's engines compared with the memory's bandwidth.

`shapes` builds the model, `contender` wraps the engines, `measure` times them, `cost` is the arithmetic of
bytes and the advice, `run` does all of it.
"""
