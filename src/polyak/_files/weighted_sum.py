"""The weighted sum of tensors in files, ``Σ cᵢ·xᵢ`` with ``Σ cᵢ = 1``.

It is computed in pieces small enough for a processor's cache: read from each file in turn, summed and rounded
once by any free thread, and returned in order. NumPy and the system release the interpreter lock, so the disk
is the limit; buffers are reused, so memory does not grow with the size or number of tensors.

With the inputs in the order of their coefficients, largest first, and ``Cᵢ = c₁ + … + cᵢ``, the sum is

    ``m₁ = x₁``,  ``mᵢ = mᵢ₋₁ - (mᵢ₋₁ - xᵢ)·cᵢ/Cᵢ``.

In this form a tensor that is equal in all files is reproduced bit for bit, and no partial sum overflows
unless the result does. The order keeps every Cᵢ above 0 if some coefficients are negative.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import cycle, groupby
from typing import NamedTuple
from zlib import crc32

import numpy as np

from polyak._dtypes import Array, DType
from polyak._files.checkpoint import ComputedTensor, FileTensor, LazyTensor, as_bytes
from polyak._files.layout import Spec, crc_of_both
from polyak._files.rounding import round_into, widen_into
from polyak._files.write import Pieces
from polyak.errors import CheckpointError

PIECE = 1 << 17  # elements of float32 computed together, half as many of float64: 512 KB stay in cache
_THREADS = 4  # readers mostly wait for the disk
_AHEAD = 8  # pieces being computed or waiting to be written


class Input(NamedTuple):
    """One input of a sum.

    share: ``cᵢ/Cᵢ``; 1 for the first.
    file: of the tensor, for messages.
    """

    tensor: LazyTensor
    share: float
    file: str


@dataclass(frozen=True)
class TensorSum:
    """One tensor of the result."""

    name: str
    inputs: Sequence[Input]  # largest coefficient first
    dtype: DType  # of the result
    # float32 or float64, the dtype of the arithmetic; None to copy the only input as it is
    wide: DType | None

    @property
    def spec(self) -> Spec:
        """Dtype and shape of the result."""
        return Spec(self.dtype, self.inputs[0].tensor.shape)

    @property
    def read(self) -> int:
        """Bytes that are read for it."""
        return sum(one.tensor.nbytes for one in self.inputs)


class Piece(NamedTuple):
    """A piece of a result.

    values: of the result's dtype, [n]; valid until the next piece is requested.
    read: bytes that were read for it.
    """

    name: str
    values: Array
    read: int


def shares(coefficients: Sequence[float]) -> list[tuple[int, float]]:
    """The order of inputs with these coefficients, and ``cᵢ/Cᵢ`` for each.

    Examples:
        >>> shares([0.25, 0.75])
        [(1, 1.0), (0, 0.25)]
    """
    order = sorted(range(len(coefficients)), key=lambda i: -coefficients[i])
    return [(i, coefficients[i] / sum(coefficients[j] for j in order[: k + 1])) for k, i in enumerate(order)]


@contextmanager
def summed(
    sums: Iterable[TensorSum], report: Callable[[Piece], object] = lambda piece: None
) -> Generator[Pieces]:
    """The values of each sum, by name, to be requested in the order of the sums.

    Leave it before the files are closed: threads may be reading ahead.

    Args:
        sums: what to compute.
        report: called with each piece after it was used.
    """
    with closing(_computed(sums)) as pieces:
        groups = groupby(_reported(pieces, report), key=lambda piece: piece.name)

        def values(name: str) -> Iterator[Array]:
            found, group = next(groups)
            if found != name:
                raise AssertionError(f"{name} was requested where {found} comes next")
            return (piece.values for piece in group)

        yield values


def in_memory(result: TensorSum, values: Pieces) -> Array:
    """A whole tensor from its pieces."""
    flat, at = np.empty(result.inputs[0].tensor.size, result.dtype), 0
    for piece in values(result.name):
        flat[at : at + len(piece)] = piece
        at += len(piece)
    return flat.reshape(result.spec.shape)


def counted(
    progress: Callable[[int, int], object] | None, total: int, size: Callable[[Piece], int]
) -> Callable[[Piece], object]:
    """A ``report`` that calls ``progress`` with the bytes so far and in total."""
    done = 0

    def report(piece: Piece) -> None:
        nonlocal done
        done += size(piece)
        if progress is not None:
            progress(done, total)

    return report


def _reported(pieces: Iterable[Piece], report: Callable[[Piece], object]) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        report(piece)


def _computed(sums: Iterable[TensorSum]) -> Generator[Piece]:
    pool = ThreadPoolExecutor(_THREADS, "polyak-sum")
    waiting: deque[tuple[_Task, Future[_Result]]] = deque()
    checks = _Checks()
    scratches = cycle([_Scratch() for _ in range(_AHEAD)])
    try:
        for task in _tasks(sums):
            # A complete tensor is computed alone, so that no other is in memory.
            while waiting and (len(waiting) == _AHEAD or task.complete or waiting[-1][0].complete):
                yield from _finished(*waiting.popleft(), checks)
            waiting.append((task, pool.submit(_compute, task, next(scratches))))
        while waiting:
            yield from _finished(*waiting.popleft(), checks)
    finally:
        pool.shutdown(cancel_futures=True)


class _Task(NamedTuple):
    """The elements of a sum from ``start`` on.

    complete: all elements, because an input can only be computed completely.
    """

    sum: TensorSum
    start: int
    length: int
    complete: bool


class _Result(NamedTuple):
    values: Array
    crcs: list[int | None]  # CRC-32 of what was read of each input whose file has one


class _Scratch:
    """The buffers of one task: 0 what is read, 1 widened, 2 the mean, 3 rounded."""

    def __init__(self) -> None:
        self._memory = [np.empty(0, np.uint8)] * 4

    def take(self, place: int, dtype: DType, length: int) -> Array:
        if length > 2 * PIECE:  # of a whole tensor
            return np.empty(length, dtype)
        if self._memory[place].nbytes < length * dtype.itemsize:
            self._memory[place] = np.empty(length * dtype.itemsize, np.uint8)
        return self._memory[place][: length * dtype.itemsize].view(dtype)


class _Checks:
    """Compares the checksums of the bytes read with those in the file."""

    def __init__(self) -> None:
        self._crcs: list[int | None] = []

    def add(self, task: _Task, crcs: list[int | None]) -> None:
        """Take in the next piece; compare after a tensor's last."""
        tensors = [one.tensor for one in task.sum.inputs]
        if task.start:
            crcs = [
                crc_of_both(before, crc, task.length * tensor.dtype.itemsize)
                if before is not None and crc is not None
                else None
                for before, crc, tensor in zip(self._crcs, crcs, tensors, strict=True)
            ]
        self._crcs = crcs
        if task.start + task.length < tensors[0].size:
            return
        for crc, one in zip(crcs, task.sum.inputs, strict=True):
            if crc is not None and isinstance(one.tensor, FileTensor) and crc != one.tensor.crc:
                raise CheckpointError(
                    f"{one.file} is damaged: {task.sum.name} differs from what was written. "
                    "Copy it again from its origin."
                )


def _finished(task: _Task, future: Future[_Result], checks: _Checks) -> Iterator[Piece]:
    values, crcs = future.result()
    checks.add(task, crcs)
    width = sum(one.tensor.dtype.itemsize for one in task.sum.inputs)
    if not task.complete:
        yield Piece(task.sum.name, values, task.length * width)
        return
    for block in _blocks(task.length):  # copied, so that a kept last piece does not keep all of it
        yield Piece(task.sum.name, values[block].copy(), (block.stop - block.start) * width)


def _tasks(sums: Iterable[TensorSum]) -> Iterator[_Task]:
    for one in sums:
        size = one.inputs[0].tensor.size
        complete = any(isinstance(i.tensor, ComputedTensor) for i in one.inputs)
        step = max(1, size) if complete else PIECE * 4 // max(4, (one.wide or one.dtype).itemsize)
        for start in range(0, max(1, size), step):
            yield _Task(one, start, min(step, size - start), complete)


def _compute(task: _Task, scratch: _Scratch) -> _Result:
    result, length = task.sum, task.length
    if result.wide is None:
        values, crc = _read(task, result.inputs[0], scratch)
        return _Result(values, [crc])
    mean = scratch.take(2, result.wide, 2 * length if result.dtype.kind == "c" else length)
    crcs: list[int | None] = []
    with np.errstate(all="ignore"):  # what is not finite is found below
        for one in result.inputs:
            raw, crc = _read(task, one, scratch)
            _take_in(mean, _numbers(raw), one.share if crcs else None, scratch)
            crcs.append(crc)
            del raw
        same = mean.dtype == _numbers(np.empty(0, result.dtype)).dtype
        values = mean.view(result.dtype) if same else scratch.take(3, result.dtype, length)
        if not round_into(mean, _numbers(values)):
            infinite, signs = _equal_infinities(task)
            mean[infinite] = 0  # where all inputs are the same infinity it came out as NaN
            if not round_into(mean, _numbers(values)):
                raise _not_finite(task)
            _numbers(values)[infinite] = signs
    return _Result(values, crcs)


def _take_in(mean: Array, numbers: Array, share: float | None, scratch: _Scratch) -> None:
    """``m -= (m - x)·share``, which preserves -0; ``m = x`` for the first."""
    for block in _blocks(len(mean)):
        part = mean[block]
        if share is None:
            widen_into(numbers[block], part)
            continue
        wide = scratch.take(1, mean.dtype, len(part))
        widen_into(numbers[block], wide)
        np.subtract(part, wide, out=wide)
        np.multiply(wide, mean.dtype.type(share), out=wide)
        np.subtract(part, wide, out=part)


def _blocks(length: int) -> Iterator[slice]:
    """Slices that stay in the cache; one, empty, of nothing."""
    for start in range(0, max(1, length), 2 * PIECE):
        yield slice(start, min(start + 2 * PIECE, length))


def _read(task: _Task, one: Input, scratch: _Scratch) -> tuple[Array, int | None]:
    """The elements of one input, and their checksum if the file has one."""
    tensor = one.tensor
    if isinstance(tensor, ComputedTensor):
        return tensor.make().reshape(-1), None  # all of it
    values = scratch.take(0, tensor.dtype, task.length)
    tensor.read_into(task.start, values)
    known = isinstance(tensor, FileTensor) and tensor.crc is not None
    return values, crc32(as_bytes(values)) if known else None


def _equal_infinities(task: _Task) -> tuple[Array, Array]:
    """The positions at which all inputs have the same infinity, as in attention masks, and its sign."""
    scratch = _Scratch()
    first = _numbers(_read(task, task.sum.inputs[0], _Scratch())[0])
    infinite = np.isinf(first)
    for one in task.sum.inputs[1:]:
        infinite &= _numbers(_read(task, one, scratch)[0]) == first
    return infinite, first[infinite]


def _numbers(array: Array) -> Array:
    """Complex numbers as pairs of real ones."""
    return array.view(f"f{array.dtype.itemsize // 2}") if array.dtype.kind == "c" else array


def _not_finite(task: _Task) -> CheckpointError:
    """The error for a piece whose mean is not finite, after reading it once more."""
    result = task.sum
    equal, _ = _equal_infinities(task)
    for one in result.inputs:
        numbers = _numbers(_read(task, one, _Scratch())[0])
        bad = np.flatnonzero(~np.isfinite(numbers) & ~equal)
        if len(bad):
            element = task.start + int(bad[0]) * task.length // len(numbers)  # of two numbers if complex
            index = tuple(map(int, np.unravel_index(element, one.tensor.shape)))
            where = "" if np.isnan(numbers[bad[0]]) else ", but not in all files"
            return CheckpointError(
                f"{one.file}: {result.name} is {numbers[bad[0]]} at {index}{where}, so every average with it "
                "would be too. Leave this checkpoint out. Nothing was written."
            )
    return CheckpointError(
        f"{result.name}: the average exceeds the range of {result.dtype}, or a partial sum that of "
        f'{result.wide}. Choose another dtype, or accumulate="float64". Nothing was written.'
    )
