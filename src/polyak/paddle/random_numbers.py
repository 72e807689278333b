"""Restoring the random state of every generator that data and layers use."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import paddle


@contextmanager
def same_random_numbers() -> Generator[None]:
    """Restore all random states after the block, so that an extra evaluation does not change training."""
    python, numpy, paddles = random.getstate(), np.random.get_state(), paddle.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        paddle.set_rng_state(paddles)
