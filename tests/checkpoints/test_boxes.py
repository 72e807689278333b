"""Blocks follow each other in a file, and a box is read without the rest of its tensor."""

from dataclasses import dataclass
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polyak._dtypes import Array
from polyak._files.boxes import Box, block_at, blocks, overlap, read_box
from polyak._files.checkpoint import LazyTensor

shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@dataclass
class Counted(LazyTensor):
    """A tensor that counts the elements that are read."""

    values: Array
    elements: int = 0
    reads: int = 0

    def __post_init__(self) -> None:
        self.dtype, self.shape = self.values.dtype, self.values.shape

    def read_into(self, start: int, buffer: Array) -> None:
        self.elements += len(buffer)
        self.reads += 1
        buffer[:] = self.values.reshape(-1)[start : start + len(buffer)]


@st.composite
def boxed(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = draw(shapes)
    begins = [draw(st.integers(0, n)) for n in shape]
    return shape, Box(
        tuple(begins), tuple(draw(st.integers(0, n - b)) for n, b in zip(shape, begins, strict=True))
    )


@given(shapes, st.integers(1, 50))
def test_blocks_follow_each_other_in_row_major_order(shape: tuple[int, ...], limit: int) -> None:
    values = np.arange(prod(shape)).reshape(shape)
    whole, read = Box.of_all(shape), list[int]()
    for start, block in blocks(shape, limit):
        assert start == len(read)
        assert block == block_at(shape, limit, start)
        assert block.size <= limit
        read += values[block.slices_in(whole)].reshape(-1).tolist()
    assert read == list(range(prod(shape)))


def test_blocks_are_as_many_whole_rows_as_fit() -> None:
    assert [block.shape for _, block in blocks((10, 3), 12)] == [(4, 3), (4, 3), (2, 3)]
    assert [block.shape for _, block in blocks((2, 5), 3)] == [(1, 3), (1, 2), (1, 3), (1, 2)]
    assert [block.shape for _, block in blocks((), 3)] == [()]


@given(boxed())
def test_a_box_is_read_and_nothing_else(case: tuple[tuple[int, ...], Box]) -> None:
    shape, box = case
    values = np.arange(prod(shape)).reshape(shape)
    tensor = Counted(values)
    found = read_box(tensor, box)
    assert found.tolist() == values[box.slices_in(Box.of_all(shape))].tolist()
    assert found.shape == box.shape
    assert tensor.elements == box.size


def test_rows_are_read_at_once() -> None:
    tensor = Counted(np.arange(60).reshape(5, 3, 4))
    read_box(tensor, Box((1, 0, 0), (3, 3, 4)))
    assert tensor.reads == 1
    read_box(tensor, Box((0, 1, 0), (5, 2, 4)))
    assert tensor.reads == 1 + 5


@given(boxed(), st.data())
def test_an_overlap_holds_the_elements_of_both(
    case: tuple[tuple[int, ...], Box], data: st.DataObject
) -> None:
    shape, one = case
    begins = [data.draw(st.integers(0, n)) for n in shape]
    sizes = [data.draw(st.integers(0, n - b)) for n, b in zip(shape, begins, strict=True)]
    other, whole = Box(tuple(begins), tuple(sizes)), Box.of_all(shape)
    marked = np.zeros(shape, int)
    for box in (one, other):
        marked[box.slices_in(whole)] += 1
    both = overlap(one, other)
    assert (0 if both is None else both.size) == (marked == 2).sum()
    if both is not None:
        assert (marked[both.slices_in(whole)] == 2).all()
