"""The runs of a history: their effect on an average, and how old ones are merged.

A run's updates multiply earlier weights by ``B = ∏ βⱼ``, and change the mean age A, in training steps, to

    ``A' = B·A + g``,  ``g = s·Σᵢ βᵢ·βᵢ₊₁·…·βₙ``,

s being the stride: an update makes all older points s steps older and multiplies their weight by βᵢ. For a
constant decay ``g = s·β·(1-βⁿ)/(1-β)``, so that a million updates cost as much as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polyak.schedules.decay import Array, Constant, Decay

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPY = Constant(0.0)
BLOCK = 1 << 14  # updates computed together: 128 KiB of float64, which stays in cache


class Run(NamedTuple):
    """``count`` evenly spaced updates; the j-th applies ``B(clock + (j-1)·advance, advance)``.

    Each moves ``stride`` training steps on; ``advance`` is the same span in the decay's own unit.
    """

    decay: Decay
    clock: int
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count is not missed here
    stride: int
    advance: int


def length(runs: Sequence[Run]) -> int:
    """Training steps of a history."""
    return sum(run.count * run.stride for run in runs)


def betas_of(run: Run, j: Array) -> Array:
    """The decay of the j-th updates of a run, j ≥ 1."""
    before = run.clock + (j - 1) * run.advance
    return run.decay.betas(before + 1) if run.advance == 1 else run.decay.products(before, run.advance)


def effects(runs: Sequence[Run]) -> tuple[Array, Array]:
    """``log B`` and g of each run; float64 [n] both."""
    logs, gains = [np.empty(0)], [np.empty(0)]
    for decay, group in groupby(runs, attrgetter("decay")):
        log, gain = (_steady if decay.constant else _varying)(list(group))
        logs.append(log)
        gains.append(gain)
    return np.concatenate(logs), np.concatenate(gains)


def remaining(logs: Array) -> Array:
    """The product of all B from the i-th run on; the last of n + 1 is 1."""
    return np.exp(np.append(np.cumsum(logs[::-1])[::-1], 0.0))


def _steady(runs: Sequence[Run]) -> tuple[Array, Array]:
    clock, count, stride, advance = _columns(runs, np.float64)
    decay: Any = runs[0].decay  # a constant one composes over an array of spans as well
    with np.errstate(divide="ignore", invalid="ignore"):
        betas = decay.products(clock, advance)
        log = np.log(betas)
        powers = np.where(log == 0, count, betas * np.expm1(count * log) / np.expm1(log))
    return count * log, stride * powers


def _columns(runs: Sequence[Run], dtype: Any) -> list[NDArray[Any]]:
    """Clocks, counts, strides and advances."""
    return [*np.array([run[1:] for run in runs], dtype).transpose()]


def _varying(runs: Sequence[Run]) -> tuple[Array, Array]:
    logs, gains = np.zeros(len(runs)), np.zeros(len(runs))
    for i, run in enumerate(runs):
        for first in range(0, run.count, BLOCK):
            start, count = run.clock + first * run.advance, min(BLOCK, run.count - first)
            log, powers = _block(run.decay, start, count, run.advance)
            logs[i] += log
            gains[i] = np.exp(log) * gains[i] + run.stride * powers
    return logs, gains


@lru_cache(maxsize=4096)
def _block(decay: Decay, clock: int, count: int, advance: int) -> tuple[float, float]:
    """``log B`` and ``Σᵢ βᵢ·…·βₙ``: cached, because a growing history has the same blocks each time."""
    with np.errstate(divide="ignore"):
        back = np.arange(count, 0, -1, np.float64)
        logs = np.cumsum(np.log(betas_of(Run(decay, clock, count, 1, advance), back)))
    return float(logs[-1]), float(np.exp(logs).sum())


def coarsened(runs: Sequence[Run], groups: int) -> list[Run]:
    """The same history in fewer runs: at most ``1/groups`` of its weight is moved, and by neighbours only.

    Updates of varying size are a run each. Neighbours whose total weight is at most ``1/groups`` are replaced
    by as many updates of equal size, with the same steps, the same time and the same decay. So the total
    weight up to any step is exact at the ends of these groups, and between them within ``1/groups``; later
    updates reduce the error.
    """
    cells = np.floor(remaining(effects(runs)[0]) * groups)
    clock, count, _, advance = _columns(runs, np.int64)
    decay = np.array([id(run.decay) for run in runs])
    goes_on = (decay[1:] == decay[:-1]) & (clock[1:] == (clock + count * advance)[:-1])
    whole = cells[1:] == cells[:-1]  # the run lies within one cell
    starts = np.flatnonzero(~(goes_on & whole[1:] & whole[:-1])) + 1
    kept: list[Run] = []
    for first, end in pairwise([0, *starts.tolist(), len(runs)]):
        group = runs[first:end]
        kept += min(group, list(_evened(group)), key=len) if len(group) > 1 else group
    return kept


def _evened(group: Sequence[Run]) -> Iterator[Run]:
    """As many updates over the same steps and time, their sizes one apart at most: the larger come first."""
    decay, clock = group[0][:2]
    count = sum(run.count for run in group)
    stride, strides = divmod(length(group), count)
    advance, advances = divmod(sum(run.count * run.advance for run in group), count)
    cuts = sorted({0, strides, advances, count})
    for first, end in pairwise(cuts):
        run = Run(decay, clock, end - first, stride + (first < strides), advance + (first < advances))
        yield run
        clock += run.count * run.advance
