"""The C kernel, on every instruction set this processor has, does what plain torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor, nn

import polyak
from polyak import reference
from polyak._kernel import _native
from polyak.torch._engines.base import Engine, Pair, arithmetic_dtype, storage_dtype
from polyak.torch._engines.blocked import Blocked
from polyak.torch._engines.foreach import Foreach
from polyak.torch._engines.rounding import draw_key, random_bits
from tests.torch.engines.cases import (
    INF,
    LIVE,
    NAN,
    SEED,
    STEP,
    STORES,
    copied,
    gap,
    marked,
    native,
    pairs,
    parts,
    same,
    spoilt,
    threads,
    whole,
)

WEIGHTS = (1e-4, 0.3, 0.5, 0.7, 1.0, 0.0)
ENGINES = {"foreach": Foreach, "blocked": Blocked, "native": native}


@pytest.fixture
def _fastest_again() -> Iterator[None]:
    yield
    _native.use(_native.variants()[0])


@pytest.fixture(params=_native.variants())
def variant(request: pytest.FixtureRequest, _fastest_again: None) -> str:
    _native.use(request.param)
    return request.param


def close(a: Pair, b: Pair, before: Pair, track: int, weight: float) -> tuple[bool, Tensor]:
    """Whether two engines agree, and which elements they rounded apart.

    float32 and wider: one unit in the last place of the larger of θ and average, since the instruction sets
    differ in whether they round a product before adding it. 16 bits: that, or the next number.
    """
    x, y, old, theta = whole(a, track), whole(b, track), whole(before, track), before.live.double()
    theta = theta.where(theta.isfinite(), 0)
    scale = torch.maximum(old.abs(), theta.abs())
    apart = (x - y).abs()
    if storage_dtype(a) == torch.float64:
        return bool((apart <= gap(scale, torch.float64)).all()), apart > 0
    one = gap(scale, torch.float32)
    if storage_dtype(a) == torch.float32 and a.residuals:
        step = weight * (theta - old).abs() + before.residuals[track].double().abs()
        return bool((apart <= 4 * gap(step, torch.float32)).all()), apart > 0
    if storage_dtype(a) == torch.float32:
        return bool((apart <= one).all()), apart > 0
    step = gap(torch.maximum(x.abs(), y.abs()), storage_dtype(a)) / (256 if a.residuals else 1)
    return bool((apart <= step + one).all()), apart > 0


@pytest.mark.usefixtures("_fastest_again")
@pytest.mark.parametrize("live", LIVE)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "trust"])
def test_every_variant_agrees_with_plain_torch(live: str, store: str, skip: bool) -> None:
    different, elements = Counter[str](), 0
    for weights in (*((w,) for w in WEIGHTS), WEIGHTS[::2], WEIGHTS[1::2]):
        before = pairs(live, store, len(weights))
        before = spoilt(before) if skip else before
        plain = Foreach(copied(before), SEED)
        expected = marked(plain, plain.update(weights, STEP, skip))
        assert set(plain.bad()) == expected
        elements += len(weights) * sum(pair.live.numel() for pair in before)
        for variant in _native.variants():
            _native.use(variant)
            kernel = native(copied(before), SEED)
            assert marked(kernel, kernel.update(weights, STEP, skip)) == expected
            assert set(kernel.bad()) == expected
            for a, b, old in zip(kernel.pairs, plain.pairs, before, strict=True):
                assert a.name == b.name == old.name
                for track, w in enumerate(weights):
                    fine, apart = close(a, b, old, track, w)
                    assert fine, (variant, a.name, track, w)
                    different[variant] += int(apart.sum())
    # Where the floats before rounding differ by one unit, in a quarter of all elements, the bits below
    # the 16 or 24 kept make another number of it: 2⁻¹³ or 2⁻⁸ of the time.
    most = elements * {"bf16": 1e-3, "f16": 1e-3, "split": 5e-3}.get(store, 1)
    assert all(count <= most for count in different.values()), different


@pytest.mark.parametrize("live", LIVE)
@pytest.mark.parametrize("store", STORES)
def test_elements_that_cannot_be_stored_keep_every_bit(variant: str, live: str, store: str) -> None:
    before = spoilt(pairs(live, store, 2))
    kernel = native(copied(before), SEED)
    kernel.update((0.3, 0.7), STEP, True)
    touched = 0
    for old, new in zip(before, kernel.pairs, strict=True):
        limit = torch.finfo(storage_dtype(old)).max
        bad = ~(old.live.to(arithmetic_dtype(old)).abs() <= limit)
        touched += int(bad.sum())
        for x, y in zip(parts([old]), parts([new]), strict=True):
            assert torch.equal(x[bad], y[bad])
            assert torch.isfinite(y).all()
    assert touched > 1000


def test_what_the_storage_just_holds_is_averaged(variant: str) -> None:
    for store, limit in {"f16": 65504.0, "bf16": torch.finfo(torch.bfloat16).max}.items():
        theta = torch.tensor([limit, -limit, limit * (1 + 2**-20)])
        one = Pair("w", theta, (torch.zeros(3, dtype=LIVE[store]),))
        kernel = native([one], SEED)
        assert marked(kernel, kernel.update((1.0,), STEP, True)) == {"w"}
        assert one.averages[0].tolist() == [limit, -limit, 0.0]


def test_a_nan_let_in_stays_a_nan_whatever_its_bits() -> None:
    theta = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    for make in ENGINES.values():
        for store in STORES:
            before = pairs("f32", store, 1, [4])[0]
            one = Pair("w", theta, before.averages, before.residuals)
            make([one], SEED).update((0.3,), STEP, False)
            assert one.averages[0].isnan().all(), (make, store)


@pytest.mark.parametrize("live", ["bf16", "f16"])
def test_every_pattern_of_16_bits_widens_exactly(variant: str, live: str) -> None:
    theta = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(LIVE[live])
    zeros = torch.zeros(1 << 16)
    kept = Pair("w", theta, (zeros.clone(),), (zeros.clone(),))
    native([kept], SEED).update((1.0,), STEP, False)
    single = Pair("w", theta, (zeros.clone(),))
    native([single], SEED).update((1.0,), STEP, False)
    exact = theta.float()
    real = ~exact.isnan()
    assert torch.equal(kept.averages[0].view(torch.int32)[real], exact.view(torch.int32)[real])
    assert torch.equal(single.averages[0][real], exact[real])
    assert torch.equal(kept.averages[0].isnan(), ~real)
    assert torch.equal(single.averages[0].isnan(), ~real)


@pytest.mark.parametrize("engine", ENGINES)
def test_float16_is_rounded_as_its_bits_say_between_all_neighbours(engine: str) -> None:
    """Up where what is dropped and the random bits make a whole step: 13 of them, 16 for subnormals."""
    below = torch.arange(0x7BFF, dtype=torch.int16).view(torch.float16).double()
    above = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).double()
    normal = below >= 2**-14
    for part in (0.0, 1e-7, 0.25, 0.5, 0.9999):
        theta = (below + part * (above - below)).float()
        share = (theta.double() - below) / (above - below)
        for sign in (1, -1):
            one = Pair("w", theta * sign, (torch.zeros(len(theta), dtype=torch.float16),))
            random = random_bits(0, len(theta), draw_key(SEED, STEP, one.key, 0), theta.device)
            of = torch.where(normal, 1 << 13, 1 << 16)
            up = (share * of).floor() + random % of >= of
            ENGINES[engine]([one], SEED).update((1.0,), STEP, False)
            assert torch.equal(one.averages[0].double() * sign, torch.where(up, above, below))


def test_float16_on_every_variant_is_rounded_alike(variant: str) -> None:
    theta = torch.cat([torch.arange(0x477FE000, 0x47801000), torch.arange(0x33000000, 0x39000000, 997)])
    one = Pair(
        "w", theta.to(torch.int32).view(torch.float32), (torch.zeros(len(theta), dtype=torch.float16),)
    )
    other = copied([one])
    native([one], SEED).update((1.0,), STEP, False)
    Foreach(other, SEED).update((1.0,), STEP, False)
    assert same(parts([one]), parts(other))


@pytest.mark.parametrize("store", ["bf16", "f16", "split"])
def test_what_is_on_the_grid_stays_there(variant: str, store: str) -> None:
    before = pairs("bf16", store, 1)[-2]
    held = Pair("w", whole(before, 0).float(), before.averages, before.residuals)
    expected = [tensor.clone() for tensor in parts([held])]
    for step in range(20):
        native([held], SEED).update((0.3,), step, False)
    assert all(map(torch.equal, parts([held]), expected))


def drawn(make: Callable[[list[Pair], int], Engine], size: int, tracks: int) -> list[Tensor]:
    """The random bits an engine rounds with, found by halving: 1 + m·2⁻²³ goes up where bits + m ≥ 2¹⁶."""
    found = [torch.zeros(size, dtype=torch.int32) for _ in range(tracks)]
    for bit in reversed(range(16)):
        for track in range(tracks):
            guess = found[track] | 1 << bit
            theta = (0x3F800000 + (1 << 16) - guess).view(torch.float32)
            one = Pair("layer.w", theta, tuple(torch.ones(size).bfloat16() for _ in range(tracks)))
            make([one], SEED).update((1.0,) * tracks, STEP, False)
            found[track] = torch.where(one.averages[track] > 1, guess, found[track])
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_draws_the_bits_of_the_formula(engine: str) -> None:
    made = drawn(ENGINES[engine], 5000, 2)
    key = Pair("layer.w", torch.ones(1), (torch.ones(1),)).key
    for track, bits in enumerate(made):
        assert torch.equal(bits, random_bits(0, 5000, draw_key(SEED, STEP, key, track), torch.device("cpu")))


def test_every_variant_draws_the_same_bits(variant: str) -> None:
    key = Pair("layer.w", torch.ones(1), (torch.ones(1),)).key
    expected = random_bits(0, 2500, draw_key(SEED, STEP, key, 0), torch.device("cpu"))
    assert torch.equal(drawn(native, 2500, 1)[0], expected)


def test_the_formula_draws_what_it_always_drew() -> None:
    """Other bits would end the promise that a run saved by an earlier version goes on as it would have."""
    key = draw_key(SEED, STEP, 0x12345678, 2)
    assert key == 3510116378943391432
    bits = random_bits(510, 6, key, torch.device("cpu"))
    assert bits.tolist() == [56640, 7770, 41856, 15537, 17148, 60423]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("live", ["f32", "f16"])
def test_any_number_of_threads_gives_the_same_bits(live: str, store: str) -> None:
    before = spoilt(pairs(live, store, 3, [1, 300_000, 100_001, 33_000, 1025]))
    results: list[list[Tensor]] = []
    for count in (1, 2, 5):
        with threads(count):
            kernel = native(copied(before), SEED)
            found = [marked(kernel, kernel.update((1e-4, 0.5, 0.9), STEP + i, True)) for i in range(3)]
            assert found == [{"of 300000", "of 33000", "channels last"}] * 3
            assert set(kernel.bad()) == found[0]
            results.append(parts(kernel.pairs))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


thetas = st.sampled_from([np.float32, np.float64, np.float16])


@settings(deadline=None, max_examples=60)  # a shared machine may pause at any moment
@given(data=st.data(), dtype=thetas, beta=st.floats(0, 1), storage=st.sampled_from(["f32", "f64"]))
def test_any_shape_and_value_gives_what_the_reference_says(
    data: st.DataObject, dtype: type[np.floating], beta: float, storage: str
) -> None:
    shape = data.draw(array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=40))
    bound = 60_000 if dtype is np.float16 else 2.0**100
    width = {np.float16: 16, np.float32: 32, np.float64: 64}[dtype]
    floats = st.floats(-bound, bound, width=width) | st.sampled_from([NAN, INF, -INF])
    first = data.draw(arrays(dtype, shape, elements=st.floats(-bound, bound, width=width)))
    model = nn.ParameterDict({"w": nn.Parameter(torch.from_numpy(np.array(first)))})
    ema = polyak.EMA(model, polyak.Constant(beta), dtype=LIVE[storage], engine="native")
    assert ema.metrics()["engine"].startswith("native")
    state, largest = reference.init({"w": first}, beta), np.abs(first.astype(np.float64))
    for _ in range(3):
        theta = data.draw(arrays(dtype, shape, elements=floats))
        with torch.no_grad():
            model["w"].copy_(torch.from_numpy(theta))
        ema.update()
        state = reference.update(state, {"w": theta.astype(np.float64)})
        largest = np.fmax(largest, np.abs(np.where(np.isfinite(theta), theta, 0).astype(np.float64)))
    average = ema.tracks["average"].tensors["w"].double().numpy()
    tolerance = 2.0**-21 if storage == "f32" else 2.0**-50
    assert (np.abs(average - state.average["w"]) <= tolerance * largest + 1e-44).all()
