"""The CRC-32 of a whole from those of its parts, so that parts can be summed by several threads.

A CRC is the remainder of the bytes read as a polynomial over GF(2); appending n bytes multiplies what
came before by x⁸ⁿ. Bits are reflected, as zlib has them: the highest bit of a number is x⁰.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320
_ONE, _BYTE = 1 << 31, 1 << 23  # x⁰ and x⁸


def crc_of_both(first: int, second: int, length: int) -> int:
    """``zlib.crc32(a + b)`` from ``zlib.crc32(a)``, ``zlib.crc32(b)`` and ``len(b)``.

    Examples:
        >>> from zlib import crc32
        >>> crc_of_both(crc32(b"left "), crc32(b"right"), 5) == crc32(b"left right")
        True

    Source: the function crc32_combine of zlib.
    """
    return _product(_shift(length), first) ^ second


def _product(a: int, b: int) -> int:
    """A·b modulo the polynomial."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """``x^(8·length)`` modulo the polynomial, by repeated squaring."""
    power, square = _ONE, _BYTE
    while length:
        if length & 1:
            power = _product(power, square)
        square = _product(square, square)
        length >>= 1
    return power
