"""The casts against NumPy's and ml_dtypes' own, number by number where there are few enough of them."""

from __future__ import annotations

import zlib
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak._dtypes import BY_NAME
from polyak._files.layout import crc_of_both
from polyak._files.rounding import round_into, widen_into

NARROW = [name for name, dtype in BY_NAME.items() if name.startswith(("F", "BF")) and dtype.itemsize < 4]


def every(dtype: np.dtype) -> np.ndarray:
    """All bit patterns of a dtype of 8 or 16 bits."""
    bits = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    return bits.view(dtype)


@cache
def ladder(name: str) -> np.ndarray:
    """All finite numbers of a dtype, ascending, as float64."""
    values = every(BY_NAME[name])
    with np.errstate(invalid="ignore"):  # of signalling NaN
        ordered = np.unique(values[np.isfinite(values)].astype(np.float64))
    # ml_dtypes 0.6 never rounds down to 2⁻¹²⁷, the smallest of this one, which float32 has as a subnormal.
    return ordered[1:] if name == "F8_E8M0" else ordered


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_every_narrow_number_widens_to_itself(name: str, wide: type) -> None:
    values = every(BY_NAME[name])
    with np.errstate(invalid="ignore"):
        finite = values[np.isfinite(values)]
        for batch in (values, finite):  # float16 takes another path where one is not
            out = np.empty(len(batch), wide)
            widen_into(batch, out)
            np.testing.assert_array_equal(out, batch.astype(wide))
            assert np.array_equal(np.signbit(out), np.signbit(batch.astype(wide)))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("nudge", [-1, 0, 1])
def test_midpoints_round_to_even_and_their_neighbours_to_the_nearer(
    name: str, wide: type, nudge: int
) -> None:
    """Each midpoint of two neighbours, and the floats next to it, where rounding twice would show."""
    dtype, ordered = BY_NAME[name], ladder(name)
    below, above = ordered[:-1], ordered[1:]
    middle = (below + (above - below) / 2).astype(wide)
    values = middle if nudge == 0 else np.nextafter(middle, wide(nudge * np.inf))
    out = np.empty(len(values), dtype)
    with np.errstate(all="ignore"):
        assert round_into(values, out)
    if nudge == 0:
        even = np.arange(len(values)) % 2 == np.flatnonzero(ordered == 0)[0] % 2 if 0 in ordered else None
        if even is None:  # powers of two alone have no even neighbour: either will do
            assert np.all((out.astype(np.float64) == below) | (out.astype(np.float64) == above))
            return
        expected = np.where(even, below, above)
    else:
        expected = below if nudge < 0 else above
    np.testing.assert_array_equal(out.astype(np.float64), expected)


@given(st.floats(width=64, allow_nan=False, allow_infinity=False), st.sampled_from(NARROW))
def test_float64_rounds_once(value: float, name: str) -> None:
    dtype, ordered = BY_NAME[name], ladder(name)
    if not ordered[0] <= value <= ordered[-1]:
        return
    out = np.empty(1, dtype)
    with np.errstate(all="ignore"):
        assert round_into(np.array([value]), out)
    place = int(np.searchsorted(ordered, value))
    near = ordered[max(0, place - 1) : place + 1]
    distance = min(abs(Fraction(value) - Fraction(float(other))) for other in near)
    assert abs(Fraction(value) - Fraction(float(out[0]))) == distance


@pytest.mark.parametrize("name", [*NARROW, "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_seen(name: str, value: float) -> None:
    out = np.empty(3, BY_NAME[name])
    with np.errstate(all="ignore"):
        assert not round_into(np.array([1.0, value, 1.0]), out)
        assert round_into(np.array([1.0, 2.0, 1.0]), out)


def test_a_number_that_rounds_down_to_the_largest_is_finite() -> None:
    out = np.empty(2, np.float16)
    assert round_into(np.array([65519.0, -65519.0], np.float32), out)
    assert out.tolist() == [65504, -65504]
    with np.errstate(over="ignore"):
        assert not round_into(np.array([65520.0, 0.0], np.float32), out)


def test_nothing_is_finite() -> None:
    assert round_into(np.empty(0, np.float32), np.empty(0, ml_dtypes.bfloat16))


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_of_parts_join(first: bytes, second: bytes) -> None:
    assert crc_of_both(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0xFC01, 0x7E00, 0xFFFF])
def test_one_half_that_is_not_finite_stays_so(bits: int) -> None:
    values = np.array([0x3C00, bits, 0x3C00], np.uint16).view(np.float16)
    out = np.empty(3, np.float32)
    with np.errstate(invalid="ignore"):
        widen_into(values, out)
        np.testing.assert_array_equal(out, values.astype(np.float32))
