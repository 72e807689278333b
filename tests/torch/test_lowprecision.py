"""Averages stored in 16 bits keep moving, because their rounding is right on average."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import polyak
from polyak.torch.engines.rounding import stochastic_round

ALL = torch.arange(65_536, dtype=torch.int32)  # every value the random bits can have, once
HALVES = [torch.bfloat16, torch.float16]


def neighbours(value: float, dtype: torch.dtype) -> tuple[float, float]:
    near = torch.tensor(value).to(dtype)
    exact = torch.tensor(value, dtype=torch.float64)
    direction = torch.tensor(float("inf")) if near.double() < exact else torch.tensor(float("-inf"))
    other = near if near.double() == exact else torch.nextafter(near, direction.to(dtype))
    return tuple(sorted((near.item(), other.item())))


@pytest.mark.parametrize("dtype", HALVES)
@settings(deadline=None)  # a shared machine may pause at any moment
@given(data=st.data(), random=st.integers(0, 65535))
def test_the_result_is_one_of_the_two_neighbours(
    dtype: torch.dtype, data: st.DataObject, random: int
) -> None:
    largest = torch.finfo(dtype).max
    value = data.draw(st.floats(-largest, largest, width=32))
    rounded = stochastic_round(torch.tensor([value]), dtype, torch.tensor([random], dtype=torch.int32)).item()
    assert rounded in neighbours(value, dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [1.001, -1.001, 3.1e-6, -2.7e-7, 517.3, 1e-3, 1e-39, -3e-40, 6e4, 0.0])
def test_the_mean_is_exact_subnormals_included(dtype: torch.dtype, value: float) -> None:
    rounded = stochastic_round(torch.full((65_536,), value), dtype, ALL).double()
    low, high = neighbours(value, dtype)
    assert rounded.mean().item() == pytest.approx(
        torch.tensor(value).item(), rel=1e-6, abs=(high - low) * 1e-4
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_ten_thousand_steps_at_a_long_decay_end_where_float64_does(dtype: torch.dtype) -> None:
    model = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = polyak.EMA(model, 0.9999, dtype=dtype)
    with torch.no_grad():
        model.weight.fill_(2.0)
    plain = torch.ones(64, 64, dtype=dtype)
    for _ in range(10_000):
        ema.update()
        plain.lerp_(model.weight.detach().to(dtype), 1e-4)
    expected = 2 - 0.9999**10_000
    assert ema.tracks["average"].tensors["weight"].double().mean().item() == pytest.approx(expected, rel=1e-3)
    assert plain.double().mean().item() < 1.1, "without it the average stands still"


def test_the_mean_is_exact_near_the_end_of_the_range() -> None:
    low, high = neighbours(3e38, torch.bfloat16)
    rounded = stochastic_round(torch.full((65_536,), 3e38), torch.bfloat16, ALL).double()
    assert rounded.mean().item() == pytest.approx(3e38, abs=(high - low) * 1e-4)


@pytest.mark.parametrize("dtype", HALVES)
def test_infinities_and_nan_stay_what_they_are(dtype: torch.dtype) -> None:
    values = torch.tensor([float("inf"), float("-inf"), float("nan")])
    rounded = stochastic_round(values, dtype, torch.tensor([0, 30_000, 65_535], dtype=torch.int32)).tolist()
    assert rounded[:2] == values.tolist()[:2]
    assert rounded[2] != rounded[2]


def test_every_step_and_seed_and_element_draws_its_own_bits() -> None:
    def run(seed: int, steps: int) -> torch.Tensor:
        model = nn.Linear(40, 40, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        ema = polyak.EMA(model, 0.99, dtype=torch.bfloat16, seed=seed)
        with torch.no_grad():
            model.weight.fill_(1.3)
        for _ in range(steps):
            ema.update()
        return ema.tracks["average"].tensors["weight"].float()

    assert torch.equal(run(0, 5), run(0, 5))
    assert not torch.equal(run(0, 5), run(1, 5))
    assert run(0, 5).unique().numel() > 1
