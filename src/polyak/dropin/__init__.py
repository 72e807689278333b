"""The classes people already import, under their own names: change the import line, keep the rest.

Constructor, attributes, methods and state_dict keys are the originals'; the arithmetic is polyak's. Where an
original is wrong (tied weights averaged twice, integer buffers rounded, a NaN that stays forever, …) these
are right; the pages docs/how-to/from-*.md list every difference.
"""
