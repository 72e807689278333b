"""Arithmetic below 32 bits: random bits, stochastic rounding, and averages in two parts.

Every engine draws the same bits: they are a function of (seed, step, tensor, track, element), so a resumed
run, even on another engine, rounds as the first would have. `native/kernel.c` is the same in C.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = (1 << 32) - 1
_BLOCK, _WORDS = 1024, 512  # elements, and words of 32 bits they share: word i is for elements i and 512 + i


def mix64(x: int) -> int:
    """splitmix64: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def draw_key(seed: int, step: int, tensor: int, track: int) -> int:
    """The 64-bit key of one draw of random bits."""
    return mix64(seed + mix64(step + mix64(tensor << 32 | track)))


def random_bits(first: int, count: int, key: int, device: torch.device) -> Tensor:
    """16 random bits for elements ``first`` to ``first + count`` of a tensor.

    A bijective mixer (C. Wellons' lowbias32) of the word's number, keyed before and between its rounds.

    Returns:
        int32 [count], uniform on 0 … 65535.
    """
    element = torch.arange(first, first + count, device=device)
    word = (element // _BLOCK * _WORDS + element % _WORDS) & _WORD
    x = word ^ (key & _WORD)
    x = ((x ^ (x >> 16)) * 0x7FEB352D + (key >> 32)) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    x = x ^ (x >> 16)
    return (x >> (element // _WORDS % 2 * 16) & 0xFFFF).to(torch.int32)


def stochastic_round(value: Tensor, dtype: torch.dtype, random: Tensor) -> Tensor:
    """``value`` on the grid of ``dtype``: up with the probability that makes the mean exact.

    Adding r of n bits below the last digit kept and dropping them carries with probability m/2ⁿ, m being
    what is dropped. Subnormal float16 are multiples of 2⁻²⁴, ``⌊(x·2⁴⁰ + r)/2¹⁶⌋`` of them.

    Args:
        value: float32, any shape, within the range of ``dtype``.
        dtype: torch.bfloat16 or torch.float16.
        random: int32 of the same shape, uniform on 0 … 65535.

    Returns:
        A tensor of ``dtype``.

    Source: Gupta et al. 2015, arXiv 1502.02551, §3.
    """
    bits = _carried(value)
    if dtype == torch.bfloat16:
        return _as_bfloat16((bits + random) >> 16)
    normal = ((bits + (random & 0x1FFF)) & ~0x1FFF).view(torch.float32)
    magnitude = value.abs()
    multiple = (torch.where(magnitude < 2**-14, magnitude, 0) * 2**40).to(torch.int32) + random >> 16
    return torch.where(magnitude < 2**-14, (multiple * 2**-24).copysign(value), normal).to(dtype)


def join(average: Tensor, low: Tensor) -> Tensor:
    """Join an average in two parts: ``avg + low`` in float64, or 24 bits from 16 and 8 in float32."""
    if low.dtype == torch.float32:
        return average.double() + low
    return ((_bits(average) << 16) + (low.to(torch.int32) << 8)).view(torch.float32)


def split(value: Tensor, random: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A float32 as the bfloat16 nearest to its first 24 bits, and how far these are from that, int8.

    ``bits = (float32 bits + r) >> 8``; ``high = (bits + 128) >> 8``; ``low = bits - (high << 8)``

    Args:
        value: float32, any shape.
        random: int32 of the same shape, of which 8 bits are used; by default the nearest.
    """
    down = 0x80 if random is None else random & 0xFF
    bits = (_carried(value) + down) >> 8
    high = (bits + 0x80) >> 8
    return _as_bfloat16(high), (bits - (high << 8)).to(torch.int8)


def compensate(average: Tensor, low: Tensor, value: Tensor, weight: float) -> None:
    """``avg + low ← avg + low + w·(θ - avg - low)`` in place, low being the rounding error of float32.

    Source: Kahan 1965, "Further remarks on reducing truncation errors"; the rest of a sum is exact whichever
    term is larger: Knuth, TAOCP vol. 2, §4.2.2, theorem B.
    """
    step = (value - average).sub_(low).mul_(weight).add_(low)
    total = average + step
    taken = total - average
    torch.add(average - (total - taken), step - taken, out=low)
    average.copy_(total)


def _carried(value: Tensor) -> Tensor:
    """The bits of a float32 to add random ones to; a NaN of all ones (CUDA's own) would carry into -0."""
    return torch.where(value.isnan(), 0x7FC00000, value.view(torch.int32))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16).to(torch.int32)


def _as_bfloat16(bits: Tensor) -> Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)
