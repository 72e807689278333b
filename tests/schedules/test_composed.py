"""Decays of many updates at once are those of single ones, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polyak.schedules import Decay, compose
from polyak.schedules.decay import composed
from tests.schedules.strategies import decays


@given(decay=decays, t=st.integers(0, 10**6), k=st.integers(1, 12), n=st.integers(1, 300))
def test_a_block_is_its_single_calls(decay: Decay, t: int, k: int, n: int) -> None:
    block = composed(decay, t, k, n)
    assert block.dtype == np.float64
    for i in {0, n // 3, n - 1}:
        assert block[i] == compose(decay, t + i * k, k)
