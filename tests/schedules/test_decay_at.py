"""A decay at one step after the other: the same numbers as alone, computed 256 at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.schedules import Capped, Cosine, Debiased, Decay, Power, Ramp, Warmup
from polyak.schedules.decay import beta_at

RULES = [
    Ramp(0.9999, tau=2000),
    Warmup(0.9999),
    Capped(0.999),
    Debiased(0.99),
    Power(0.1),
    Cosine(0.9, 1, 500),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(t=st.integers(1, 10**9))
def test_it_is_the_decay_to_the_last_bit(rule: Decay, t: int) -> None:
    assert beta_at(rule, t) == rule(t)


def test_256_steps_are_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []

    def betas(self: Ramp, t: np.ndarray) -> np.ndarray:
        computed.append(len(t))
        return np.full_like(t, 0.5)

    monkeypatch.setattr(Ramp, "betas", betas)
    rule = Ramp(0.123, tau=45.678)
    for t in range(1, 513):
        beta_at(rule, t)
    assert computed == [256, 256]
