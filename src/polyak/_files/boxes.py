"""Boxes of a tensor: the part that one process holds, and the blocks in which a tensor is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from polyak._dtypes import Array
from polyak._files.checkpoint import LazyTensor


class Box(NamedTuple):
    """A part of a tensor: where it begins in the whole, and its shape."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of_all(cls, shape: Sequence[int]) -> Box:
        """The box that is the whole tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def slices_in(self, frame: Box) -> tuple[slice, ...]:
        """Where this box lies in a tensor that holds ``frame``."""
        begins = [at - base for at, base in zip(self.offset, frame.offset, strict=True)]
        return tuple(slice(at, at + n) for at, n in zip(begins, self.shape, strict=True))


def overlap(a: Box, b: Box) -> Box | None:
    """The elements that are in both boxes; None if there are none."""
    begins = tuple(map(max, a.offset, b.offset))
    ends = [min(i + n, j + m) for i, n, j, m in zip(a.offset, a.shape, b.offset, b.shape, strict=True)]
    shape = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
    return Box(begins, shape) if all(n > 0 for n in shape) else None


def block_at(shape: Sequence[int], limit: int, start: int) -> Box:
    """The block of a tensor that begins with element ``start``; its elements follow each other in a file.

    Args:
        shape: of the whole tensor.
        limit: elements of a block, at most. Blocks are rows, or parts of one where a row has more.
        start: 0, or where the block before ended, in row-major order.
    """
    if not shape:
        return Box((), ())
    axis = next(d for d in range(len(shape)) if prod(shape[d + 1 :]) <= limit or d == len(shape) - 1)
    offset = tuple(int(i) for i in np.unravel_index(start, tuple(shape)))
    rows = min(max(1, limit // max(1, prod(shape[axis + 1 :]))), shape[axis] - offset[axis])
    return Box(offset, (*(1,) * axis, rows, *shape[axis + 1 :]))


def blocks(shape: Sequence[int], limit: int) -> Iterator[tuple[int, Box]]:
    """All blocks of a tensor in row-major order, each with its first element."""
    start = 0
    while start < prod(shape):
        block = block_at(shape, limit, start)
        yield start, block
        start += block.size


def read_box(tensor: LazyTensor, box: Box) -> Array:
    """The values of a box, without reading the rest. Of a part, no checksum can be compared."""
    if box.shape == tensor.shape:
        return tensor.read()
    out = np.empty(box.shape, tensor.dtype)
    if not box.size:
        return out
    strides = [prod(tensor.shape[d + 1 :]) for d in range(len(box.shape))]
    # Behind the last axis that is cut the elements follow each other in the file.
    axis = max(d for d, n in enumerate(box.shape) if n != tensor.shape[d])
    run = prod(box.shape[axis:])
    flat = out.reshape(-1)
    for number, outer in enumerate(product(*map(range, box.shape[:axis]))):
        place = [at + i for at, i in zip(box.offset, (*outer, *(0,) * len(box.shape)), strict=False)]
        start = sum(at * stride for at, stride in zip(place, strides, strict=True))
        tensor.read_into(start, flat[number * run : (number + 1) * run])
    return out
