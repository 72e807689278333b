"""Page-locked host memory without the waste of torch's allocator.

torch rounds each pinned allocation up to a power of two, which for the tensors of a transformer adds up to
1.6 times their size. So tensors share slabs whose sizes are powers of two already.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNMENT = 256  # bytes; suits the copy engines of GPUs, and more than any dtype needs


def pinned_like(tensors: Sequence[Tensor], pin: bool = True) -> list[Tensor]:
    """Uninitialised host tensors of these shapes, dtypes and layouts, on shared pinned memory."""
    slabs, places = packed([tensor.numel() * tensor.itemsize for tensor in tensors])
    memory = [torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pin) for size in slabs]
    return [_view(memory[slab], first, like) for like, (slab, first) in zip(tensors, places, strict=True)]


def packed(sizes: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Slabs that hold blocks of these sizes: the largest first, each where it fits or in a new slab.

    A new slab is the largest power of two that what is left can fill, or the smallest that holds the block.

    Args:
        sizes: in bytes.

    Returns:
        The slabs' sizes, and for each block its slab and its first byte there.
    """
    aligned = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
    left = sum(aligned)
    slabs: list[int] = []
    filled: list[int] = []
    places = [(0, 0)] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -aligned[i]):
        size = aligned[i]
        slab = next((s for s, used in enumerate(filled) if slabs[s] - used >= size), len(slabs))
        if slab == len(slabs):
            slabs.append(max(1 << (left.bit_length() - 1), 1 << (size - 1).bit_length()) if size else 0)
            filled.append(0)
        places[i] = slab, filled[slab]
        filled[slab] += size
        left -= size
    return slabs, places


def _view(slab: Tensor, first: int, like: Tensor) -> Tensor:
    flat = slab[first : first + like.numel() * like.itemsize].view(like.dtype)
    strides = torch.empty_like(like, device="meta").stride()  # contiguous where ``like`` has gaps
    return flat.as_strided(like.shape, strides)
