"""Averages in two parts, in NumPy; engines do the same arithmetic on their devices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def join(average: NDArray[Any], low: NDArray[Any]) -> NDArray[Any]:
    """Join an average in two parts: ``avg + low`` in float64, or 24 bits from 16 and 8 in float32."""
    if low.dtype == np.float32:
        return average.astype(np.float64) + low
    bits = (average.view(np.uint16).astype(np.int32) << 16) + (low.astype(np.int32) << 8)
    return bits.view(np.float32)


def split(value: NDArray[Any], form: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A value as the nearest average of two parts.

    ``bits = (float32 bits + 128) >> 8``; ``high = (bits + 128) >> 8``; ``low = bits - (high << 8)``

    Args:
        value: floating, any shape.
        form: "BF16" for bfloat16 and the 8 bits that follow, int8; "F32" for float32 and what it lacks.
    """
    if form == "F32":
        high = value.astype(np.float32)
        with np.errstate(invalid="ignore"):
            rest = value.astype(np.float64) - high
        # An infinity lacks nothing.
        return high, np.nan_to_num(rest, nan=0, posinf=0, neginf=0).astype(np.float32)
    from polyak._dtypes import BFLOAT16  # of ml_dtypes, which few averages need

    narrow = value.astype(np.float32)
    bits = (np.where(np.isnan(narrow), np.int32(0x7FC00000), narrow.view(np.int32)) + 0x80) >> 8
    high = (bits + 0x80) >> 8
    return high.astype(np.int16).view(BFLOAT16), (bits - (high << 8)).astype(np.int8)
