"""Synchronising buffers between the processes of data-parallel training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyak._core.average_set import AverageSet
from polyak._core.tensors import T


def synchronize_buffers(
    averages: AverageSet[Any, T], mean: Callable[[T], T], first: Callable[[T], T]
) -> None:
    """Set averaged buffers to their mean over all processes, copied ones to those of the first process.

    An average is linear in θ, so the mean of the processes' averages is the average of their mean.

    Args:
        averages: of this process; all processes call this at the same step.
        mean: the mean of a tensor over all processes, in at least float32.
        first: the first process's values.
    """
    averages.synchronize()
    for entry in averages.plan.having("average"):
        if entry.kind == "buffer":
            for track in averages.tracks.values():
                total = mean(track.value(entry.name))
                averages.ops.put(track.tensors[entry.name], track.residuals.get(entry.name), total)
    for copy in averages.copies.values():
        averages.ops.overwrite(copy, first(copy))
