"""Converting between the dtypes of files and of the arithmetic: into buffers, exactly, and fast.

NumPy casts float16 one by one, which would be slower than the disk; ml_dtypes rounds float64 via float32,
which rounds twice.
"""

from __future__ import annotations

from functools import lru_cache

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from polyak._dtypes import BFLOAT16, Array, DType

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_FLOAT16_MAX = np.float32(65504)
# Sign, exponent and fraction of a float16 where a float32 has them, after a shift by 13 of the bits.
_FLOAT16_MASK = np.int32(-0x7000_2000)
_FLOAT16_SCALE = np.float32(2.0**112)  # the difference of the two exponents' biases


def widen_into(values: Array, out: Array) -> None:
    """Real numbers of any width into a float32 or float64 buffer of the same length."""
    if out.dtype == _FLOAT32 and values.dtype == BFLOAT16:
        bits = out.view(np.uint32)
        np.copyto(bits, values.view(np.uint16))
        np.left_shift(bits, np.uint32(16), out=bits)
    elif out.dtype == _FLOAT32 and values.dtype == np.float16:
        _widen_half(values, out)
    else:
        np.copyto(out, values, casting="unsafe")


def _widen_half(values: Array, out: Array) -> None:
    """A float16's bits, shifted into a float32, are the number divided by 2¹¹²; NaN and infinity excepted."""
    bits = out.view(np.int32)
    np.copyto(bits, values.view(np.int16))  # with its sign in all upper bits
    np.left_shift(bits, np.int32(13), out=bits)
    np.bitwise_and(bits, _FLOAT16_MASK, out=bits)
    np.multiply(out, _FLOAT16_SCALE, out=out)
    if len(out) and (out.max() > _FLOAT16_MAX or out.min() < -_FLOAT16_MAX):
        np.copyto(out, values)


def round_into(values: Array, out: Array) -> bool:
    """Float32 or float64 numbers, rounded once to nearest even, into a buffer of a dtype as wide or narrower.

    Returns:
        Whether all are finite there.
    """
    if not len(values):
        return True
    if out.dtype.itemsize < 4 and values.dtype == _FLOAT64 and out.dtype != np.float16:
        values = _to_odd(values)
    np.copyto(out, values, casting="unsafe")
    top = _top(out.dtype)
    if -top <= float(values.min()) and float(values.max()) <= top:  # a NaN passes through min and max
        return True
    return bool(np.isfinite(out).all())


@lru_cache
def _top(dtype: DType) -> float:
    """The largest finite number."""
    return float(ml_dtypes.finfo(dtype).max)  # pyright: ignore[reportUnknownArgumentType]


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to odd in float32, which may be rounded again: an inexact result has its last bit set.

    Source: Boldo & Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd".
    """
    near = values.astype(np.float32)
    bits = near.view(np.uint32)
    bits -= np.abs(near.astype(np.float64)) > np.abs(values)  # towards zero
    bits |= near.astype(np.float64) != values
    return near
