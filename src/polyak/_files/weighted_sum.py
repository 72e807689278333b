"""Weighted means of tensors that are still in their files, in pieces small enough for a processor's cache.

A piece is read from each file in turn, averaged and rounded once, by whichever thread is free, and handed
out in order. NumPy and the system let other threads run meanwhile, so that the disk is what limits; the
buffers are used over and over, so that memory grows neither with the tensors nor with their number.

With the inputs in the order of their weights, largest first, and ``Wᵢ = w₁ + … + wᵢ``, the mean is

    ``m₁ = x₁``,  ``mᵢ = mᵢ₋₁ - (mᵢ₋₁ - xᵢ)·wᵢ/Wᵢ``.

In this form a tensor that is the same in all files comes out bit for bit as it was, and no sum overflows
that the mean does not. The order keeps every Wᵢ above 0 when some weights are below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from polyak._files.checkpoint import ComputedTensor, FileTensor, LazyTensor, as_bytes
from polyak._files.crc import crc_of_both
from polyak._files.rounding import round_into, widen_into
from polyak.errors import CheckpointError

PIECE = 1 << 17  # numbers taken together: 512 KB of float32, so that what is worked on stays in cache
_THREADS = 4  # a reader's time goes mostly into waiting for the disk
_AHEAD = 8  # pieces under way or waiting to be written


class Term(NamedTuple):
    """One input of a blend.

    share: ``wᵢ/Wᵢ``; 1 for the first.
    file: where the slot is from, for messages.
    """

    slot: LazyTensor
    share: float
    file: str


@dataclass(frozen=True)
class Blend:
    """One tensor of the result.

    Args:
        name: of the tensor.
        terms: the inputs, largest weight first.
        dtype: of the result.
        wide: float32 or float64, what means are taken in; None to copy the only term as it is.
    """

    name: str
    terms: Sequence[Term]
    dtype: np.dtype[Any]
    wide: np.dtype[Any] | None


class Part(NamedTuple):
    """A piece of a result.

    values: of the result's dtype, [n]; valid until the next one is asked for.
    read: bytes that were read for it.
    """

    name: str
    values: NDArray[Any]
    read: int


def shares(weights: Sequence[float]) -> list[tuple[int, float]]:
    """In which order to take inputs of these weights, and ``wᵢ/Wᵢ`` for each.

    Examples:
        >>> shares([0.25, 0.75])
        [(1, 1.0), (0, 0.25)]
    """
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    return [(i, weights[i] / sum(weights[j] for j in order[: k + 1])) for k, i in enumerate(order)]


def blended(blends: Iterable[Blend]) -> Generator[Part]:
    """The values of each blend, one after another, each in row-major order.

    Close it before the files: threads may be reading ahead.

    Raises:
        CheckpointError: a file cannot be read or is damaged; a float is NaN, or infinite but not in all
            inputs, or becomes so.
    """
    pool = ThreadPoolExecutor(_THREADS, "polyak-blend")
    waiting: deque[tuple[_Task, Future[_Result]]] = deque()
    checks = _Checks()
    scratches = cycle([_Scratch() for _ in range(_AHEAD)])
    try:
        for task in _tasks(blends):
            # Before a tensor is averaged whole (None), the one before it must have left memory.
            while len(waiting) == _AHEAD or (task is None and waiting):
                yield _finished(*waiting.popleft(), checks)
            if task is not None:
                waiting.append((task, pool.submit(_compute, task, next(scratches))))
        while waiting:
            yield _finished(*waiting.popleft(), checks)
    finally:
        pool.shutdown(cancel_futures=True)


class _Task(NamedTuple):
    """The elements of a blend from ``start`` on."""

    blend: Blend
    start: int
    length: int


class _Result(NamedTuple):
    values: NDArray[Any]
    sums: list[int | None]  # CRC-32 of what was read for each term whose file has one


class _Scratch:
    """The buffers of one task: 0 what is read, 1 widened, 2 the mean, 3 rounded."""

    def __init__(self) -> None:
        self._memory = [np.empty(2 * PIECE * 8, np.uint8) for _ in range(4)]  # complex numbers are two

    def take(self, place: int, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
        return self._memory[place][: length * dtype.itemsize].view(dtype)


class _Checks:
    """Compares the checksums of what was read of each tensor with those in its file."""

    def __init__(self) -> None:
        self._sums: list[int | None] = []

    def add(self, task: _Task, sums: list[int | None]) -> None:
        """Take in the next piece; compare after a tensor's last.

        Raises:
            CheckpointError: a file is damaged.
        """
        slots = [term.slot for term in task.blend.terms]
        if task.start:
            sums = [
                crc_of_both(before, crc, task.length * slot.dtype.itemsize)
                if before is not None and crc is not None
                else None
                for before, crc, slot in zip(self._sums, sums, slots, strict=True)
            ]
        self._sums = sums
        if task.start + task.length < slots[0].size:
            return
        for crc, term in zip(sums, task.blend.terms, strict=True):
            if crc is not None and isinstance(term.slot, FileTensor) and crc != term.slot.crc:
                raise CheckpointError(
                    f"{term.file} is damaged: {task.blend.name} is not what was written. "
                    "Copy it again from its origin."
                )


def _finished(task: _Task, future: Future[_Result], checks: _Checks) -> Part:
    values, sums = future.result()
    checks.add(task, sums)
    return Part(task.blend.name, values, sum(task.length * t.slot.dtype.itemsize for t in task.blend.terms))


def _tasks(blends: Iterable[Blend]) -> Iterator[_Task | None]:
    for blend in blends:
        if any(isinstance(term.slot, ComputedTensor) for term in blend.terms):
            yield None
            blend = _averaged_whole(blend)
        size = blend.terms[0].slot.size
        for start in range(0, max(1, size), PIECE):
            yield _Task(blend, start, min(PIECE, size - start))


def _compute(task: _Task, scratch: _Scratch) -> _Result:
    blend, start, length = task
    sums: list[int | None] = []
    if blend.wide is None:
        values = scratch.take(0, blend.dtype, length)
        return _Result(values, [_read(blend.terms[0].slot, start, values)])
    numbers = 2 * length if blend.dtype.kind == "c" else length
    mean = scratch.take(2, blend.wide, numbers)
    with np.errstate(all="ignore"):  # what is not finite is found below
        for place, term in enumerate(blend.terms):
            raw = scratch.take(0, term.slot.dtype, length)
            sums.append(_read(term.slot, start, raw))
            if place == 0:
                widen_into(_numbers(raw), mean)
                continue
            wide = _numbers(raw)
            if wide.dtype != blend.wide:
                wide = scratch.take(1, blend.wide, numbers)
                widen_into(_numbers(raw), wide)
            _move_towards(mean, wide, term.share)
        values = scratch.take(3, blend.dtype, length)
        if not round_into(mean, _numbers(values)):
            infinite, signs = _equal_infinities(task)
            mean[infinite] = 0  # where all inputs are the same infinity it came out as NaN
            if not round_into(mean, _numbers(values)):
                raise _not_finite(task)
            _numbers(values)[infinite] = signs
    return _Result(values, sums)


def _equal_infinities(task: _Task) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where all inputs of a piece hold the same infinity, as attention masks do, and which it is."""
    first = _numbers(_values(task, task.blend.terms[0]))
    infinite = np.isinf(first)
    for term in task.blend.terms[1:]:
        infinite &= _numbers(_values(task, term)) == first
    return infinite, first[infinite]


def _values(task: _Task, term: Term) -> NDArray[Any]:
    raw = np.empty(task.length, term.slot.dtype)
    term.slot.read_into(task.start, raw)
    return raw


def _read(slot: LazyTensor, start: int, buffer: NDArray[Any]) -> int | None:
    """Fill the buffer; the checksum of what came, if the file says what it should be."""
    slot.read_into(start, buffer)
    return crc32(as_bytes(buffer)) if isinstance(slot, FileTensor) and slot.crc is not None else None


def _move_towards(mean: NDArray[Any], wide: NDArray[Any], share: float) -> None:
    """``m -= (m - x)·share``, which leaves a -0 what it is; x is overwritten."""
    np.subtract(mean, wide, out=wide)
    np.multiply(wide, mean.dtype.type(share), out=wide)
    np.subtract(mean, wide, out=mean)


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Complex numbers as pairs of real ones."""
    return array.view(f"f{array.dtype.itemsize // 2}") if array.dtype.kind == "c" else array


def _not_finite(task: _Task) -> CheckpointError:
    """What to say of a piece whose mean is not finite, after looking at it once more."""
    blend = task.blend
    equal, _ = _equal_infinities(task)
    for term in blend.terms:
        numbers = _numbers(_values(task, term))
        bad = np.flatnonzero(~np.isfinite(numbers) & ~equal)
        if len(bad):
            element = task.start + int(bad[0]) * task.length // len(numbers)  # of two numbers if complex
            index = tuple(map(int, np.unravel_index(element, term.slot.shape)))
            where = "" if np.isnan(numbers[bad[0]]) else ", but not in all files"
            return CheckpointError(
                f"{term.file}: {blend.name} is {numbers[bad[0]]} at {index}{where}; no average with it is "
                "finite. Leave this checkpoint out. Nothing was written."
            )
    return CheckpointError(
        f"{blend.name}: the average is beyond the range of {blend.dtype}, or was on the way there in "
        f'{blend.wide}. Choose another dtype, or accumulate="float64". Nothing was written.'
    )


@dataclass(frozen=True)
class _InMemory(LazyTensor):
    """A tensor that is no longer, or was never, in a file."""

    values: NDArray[Any]

    @property
    def dtype(self) -> np.dtype[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.values.shape

    def read_into(self, start: int, buffer: NDArray[Any]) -> None:
        buffer[:] = self.values.reshape(-1)[start : start + len(buffer)]


def _averaged_whole(blend: Blend) -> Blend:
    """A tensor that a file can only give whole: averaged with no more than one input in memory."""
    first = blend.terms[0]
    if blend.wide is None:
        return replace(blend, terms=[first._replace(slot=_InMemory(_whole(first.slot)))])
    wide = np.result_type(blend.wide, np.complex64) if blend.dtype.kind == "c" else blend.wide
    mean = np.empty(first.slot.shape, wide)
    flat = _numbers(mean.reshape(-1))
    scratch = np.empty(PIECE, blend.wide)
    with np.errstate(all="ignore"):
        for place, term in enumerate(blend.terms):
            values = _numbers(_whole(term.slot).reshape(-1))
            for start in range(0, len(flat), PIECE):
                piece = flat[start : start + PIECE]
                into = piece if place == 0 else scratch[: len(piece)]
                widen_into(values[start : start + PIECE], into)
                if place:
                    _move_towards(piece, into, term.share)
            del values
        if not np.isfinite(flat).all():
            task = _Task(blend, 0, first.slot.size)
            infinite, signs = _equal_infinities(task)
            flat[infinite] = 0
            if not np.isfinite(flat).all():
                raise _not_finite(task)
            flat[infinite] = signs
    return replace(blend, terms=[Term(_InMemory(mean), 1.0, first.file)])


def _whole(slot: LazyTensor) -> NDArray[Any]:
    return (
        slot.make() if isinstance(slot, ComputedTensor) else slot.read()
    )  # read() would copy what make() made
