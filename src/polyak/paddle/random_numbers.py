"""Drawing the same random numbers again, from every generator that data and layers draw from."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import paddle


@contextmanager
def same_random_numbers() -> Generator[None]:
    """What is drawn in this block is drawn again after it: an evaluation more changes no training."""
    python, numpy, paddles = random.getstate(), np.random.get_state(), paddle.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        paddle.set_rng_state(paddles)
