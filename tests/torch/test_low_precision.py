"""Averages stored in 16 bits keep moving, because their rounding is right on average; so do those in two
parts, because they lose nothing."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import polyak
from polyak.torch._engines.base import Engine, Pair
from polyak.torch._engines.foreach import Foreach
from polyak.torch._engines.rounding import draw_key, join, random_bits, stochastic_round
from tests.torch.engines.cases import native

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


SMALL: list[Any] = [torch.bfloat16, torch.float16, "split"]
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, "split": 2.0**-15}  # of numbers in [1, 2)
CPU = torch.device("cpu")


def wandering(dtype: torch.dtype, size: int, steps: int) -> Iterator[torch.Tensor]:
    """θ that drifts from 1.05 up to 1.95, with noise of 0.02 that is not the same for all."""
    noise = torch.randn(size * 9, generator=torch.Generator().manual_seed(4)) * 0.02
    for step in range(steps):
        start = step * 7919 % (size * 8)
        yield noise[start : start + size].add(1.05 + 0.9 * step / steps).to(dtype)


@pytest.mark.parametrize("theta", [torch.bfloat16, torch.float32])
def test_ten_thousand_steps_of_drift_and_noise_are_averaged_as_in_float64(theta: torch.dtype) -> None:
    size, weight = 65_536, 1e-4
    model = nn.ParameterDict({"w": nn.Parameter(torch.full((size,), 1.0, dtype=theta))})
    kept = {storage: polyak.EMA(model, 0.9999, dtype=storage) for storage in SMALL}
    exact = torch.ones(size, dtype=torch.float64)
    variance = 0.0
    for value in wandering(theta, size, 10_000):
        with torch.no_grad():
            model["w"].copy_(value)
        for ema in kept.values():
            ema.update()
        # Of a step of w·|θ-avg| a part goes up by a whole ulp: variance w·|θ-avg|·ulp, and old noise decays.
        exact.lerp_(value.double(), weight)
        variance = variance * (1 - weight) ** 2 + weight * abs(float(value[0]) - float(exact[0]))
    travelled = float((exact - 1).mean())
    assert travelled > 0.2
    for storage, ema in kept.items():
        error = ema.tracks["average"].value("w").double() - exact
        assert abs(float(error.mean())) < min(1e-3 * travelled, 4 * float(error.std()) / 256), storage
        assert float(error.std()) < 1.3 * math.sqrt(variance * ULP[storage]), storage
        if storage != "split":  # there one step is about an ulp, and what is surely taken adds no noise
            assert float(error.std()) > 0.7 * math.sqrt(variance * ULP[storage])


RESUMED = [(storage, {"dtype": storage}) for storage in SMALL] + [("compensated", {"compensated": True})]


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=[str(name) for name, _ in RESUMED])
@pytest.mark.parametrize("second", ["native", "blocked", "foreach"])
def test_a_run_cut_in_the_middle_goes_on_bit_for_bit_on_any_engine(
    name: Any, options: dict[str, Any], second: str, tmp_path: Path
) -> None:
    """θ and β have so few digits that only the rounding to 16 bits is inexact: engines differ in nothing."""
    model = nn.ParameterDict({k: nn.Parameter(torch.full((3000,), 1.5).bfloat16()) for k in "ab"})

    def make(engine: str) -> polyak.EMA:
        return polyak.EMA(model, {"x": 0.75, "y": 0.5}, seed=5, engine=engine, **options)

    def run(ema: polyak.EMA, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                for place, name in enumerate("ab"):
                    random = torch.Generator().manual_seed(2 * step + place)
                    model[name].copy_(torch.randint(128, 256, (3000,), generator=random) / 128)
            ema.update()

    whole, first = make("native"), make("native")
    run(whole, range(60))
    run(first, range(30))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    first.save(tmp_path / "state.safetensors", resumable=True)
    loaded, read = make(second), make(second)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    read.load(tmp_path / "state.safetensors")
    for again in (loaded, read):
        run(again, range(30, 60))
        for track in "xy":
            for key, expected in whole.tracks[track].tensors.items():
                assert torch.equal(again.tracks[track].tensors[key], expected)
            for key, expected in whole.tracks[track].residuals.items():
                # The low part of a compensated average is of steps that instruction sets round differently.
                near = 2.0**-45 if name == "compensated" and second != "native" else 0
                low = again.tracks[track].residuals[key]
                assert torch.allclose(low.double(), expected.double(), rtol=0, atol=near)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def test_other_seeds_steps_tensors_and_tracks_draw_unrelated_bits() -> None:
    keys = [(0, 1, 7, 0)]
    keys += [(1, 1, 7, 0), (1 << 40, 1, 7, 0), (-1, 1, 7, 0)]  # seeds
    keys += [(0, 2, 7, 0), (0, 0, 7, 0), (0, 1 << 33, 7, 0)]  # steps
    keys += [(0, 1, 6, 0), (0, 1, 1 << 31, 0), (0, 1, 7, 1), (0, 1, 7, 2)]  # tensors, tracks
    n = 1 << 16
    draws = [random_bits(0, n, draw_key(*key), CPU) for key in keys]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(correlation(a, b)) < 4 / math.sqrt(n)
            assert abs(int((a == b).sum()) - 1) < 10


def test_the_bits_are_uniform_and_neighbours_are_unrelated() -> None:
    n = 1 << 20
    bits = random_bits(0, n, draw_key(3, 14, 159, 0), CPU)
    for digits in (bits >> 8, bits & 0xFF, bits >> 3 & 0x1FF, bits):
        counts = torch.bincount(digits, minlength=int(digits.max()) + 1).double()
        expected, degrees = n / len(counts), len(counts) - 1
        chi = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi - degrees) < 4 * math.sqrt(2 * degrees)
    for lag in (1, 2, 3, 16, 511, 512, 513, 1024, 4096):  # elements 512 apart share a word
        assert abs(correlation(bits[lag:], bits[:-lag])) < 4 / math.sqrt(n)


def test_pieces_of_a_tensor_draw_what_the_whole_does() -> None:
    key = draw_key(1, 2, 3, 4)
    whole = random_bits(0, 5000, key, CPU)
    for first, count in [(0, 1), (511, 2), (512, 1024), (4999, 1)]:
        assert torch.equal(random_bits(first, count, key, CPU), whole[first : first + count])


@pytest.mark.parametrize("which", range(4), ids=["seed", "step", "tensor", "track"])
def test_one_bit_of_what_makes_the_key_changes_half_of_what_is_drawn(which: int) -> None:
    n, key = 1 << 12, [5, 6, 7, 1]
    before = random_bits(0, n, draw_key(*key), CPU)
    for bit in range((64, 64, 32, 6)[which]):
        other = list(key)
        other[which] ^= 1 << bit
        changed = before ^ random_bits(0, n, draw_key(*other), CPU)
        for digit in range(16):
            flipped = float((changed >> digit & 1).double().mean())
            assert abs(flipped - 0.5) < 5 * 0.5 / math.sqrt(n), (bit, digit)


def test_a_hundred_seeds_show_no_bias() -> None:
    value = torch.full((1 << 14,), 1 + 0.3 * 2**-7)
    means = []
    for seed in range(100):
        rounded = stochastic_round(
            value, torch.bfloat16, random_bits(0, len(value), draw_key(seed, 1, 2, 0), CPU)
        )
        means.append(float((rounded.double() - value.double()).mean()) * 2**7)
    spread = math.sqrt(0.3 * 0.7 / len(value))
    assert abs(sum(means) / 100) < 4 * spread / 10
    assert max(map(abs, means)) < 4.5 * spread
    assert math.sqrt(sum(m * m for m in means) / 100) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("numerator", [1, 512, 513, 1022, 1023])
def test_subnormal_float16_on_their_grid_stay_there(numerator: int) -> None:
    value = torch.full((65_536,), numerator * 2.0**-24)
    assert stochastic_round(value, torch.float16, ALL).double().unique().tolist() == [numerator * 2.0**-24]


def settled(compensated: bool, steps: int) -> float:
    """How far from its target of 1.9 an average ends that began at 1."""
    average = torch.ones(64)
    residuals = (torch.zeros(64),) if compensated else ()
    one = Pair("w", torch.full((64,), 1.9), (average,), residuals)
    engine = native([one], 0)
    for step in range(steps):
        engine.update((1e-4,), step, True)
    ends = join(average, residuals[0]) if compensated else average.double()
    return float((1.9 - ends).abs().max()) / 0.9


def test_only_a_compensated_average_reaches_a_target_that_stands_still() -> None:
    steps = 200_000
    assert math.exp(-steps * 1e-4) < 1e-8
    assert 1e-4 < settled(False, steps) < 1e-3
    assert settled(True, steps) < 1e-7


@pytest.mark.parametrize("make", [native, Foreach])
def test_a_hundred_thousand_steps_of_plain_float32_have_no_bias(
    make: Callable[[list[Pair], int], Engine],
) -> None:
    size = 512
    noise = torch.randn(size * 9, generator=torch.Generator().manual_seed(6)) * 0.1 + 1
    theta, average, exact = torch.ones(size), torch.ones(size), torch.ones(size, dtype=torch.float64)
    engine = make([Pair("w", theta, (average,))], 0)
    wide = noise.double()
    for step in range(100_000):
        start = step * 7919 % (size * 8)
        theta.copy_(noise[start : start + size])
        engine.update((1e-3,), step, False)
        exact.lerp_(wide[start : start + size], 1e-3)
    assert abs(float((average.double() / exact - 1).mean())) < 1e-6
