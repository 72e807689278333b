"""The average inside the live model, for a while.

Where dtype and device allow it the live tensor is pointed at the average's memory: nothing is copied and
nothing allocated, and the average stays what it is. Elsewhere the fewest values are: a cast of the
average for another dtype or device, a backup for tensors that are views of one memory (the flat
weights of a cuDNN RNN), whose addresses other code relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from polyak.errors import SwapError
from polyak.torch.plan import Entry, Plan

# Live tensors that hold an average now, by id; they are kept alive by the swap that put them here.
_swapped: set[int] = set()


def swap_in(plan: Plan, averages: Mapping[str, Tensor], undo: ExitStack) -> None:
    """Put ``averages`` into the live model; unwinding ``undo`` takes them out again.

    The way back is pushed before each tensor is touched, so an exception at any point restores all.

    Raises:
        SwapError: another average is in some of these tensors.
    """
    entries = [entry for entry in plan.entries.values() if entry.name in averages]
    for entry in entries:
        if any(id(tensor) in _swapped for tensor in entry.tensors):
            raise SwapError(
                f"{entry.name} already holds another average. Leave that average_parameters() block first."
            )
    shared = _sharing_memory(plan)
    with torch.no_grad():
        for entry in entries:
            average = averages[entry.name]
            for tensor in entry.tensors:
                _swapped.add(id(tensor))
                undo.callback(_swapped.discard, id(tensor))
                _put(tensor, average, tensor.numel() > 0 and _memory(tensor) in shared, undo.callback)


def _put(live: Tensor, average: Tensor, fixed: bool, on_exit: Callable[..., object]) -> None:
    if fixed:
        on_exit(_copy_back, live, live.detach().clone())
        live.copy_(average)
    else:
        on_exit(_point, live, live.data)
        _point(live, average.to(live.device, live.dtype))  # the average itself when both already agree


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory


def _copy_back(live: Tensor, backup: Tensor) -> None:
    with torch.no_grad():
        live.copy_(backup)


def _sharing_memory(plan: Plan) -> set[object]:
    """Memories that more than one planned entry lies in."""
    seen: set[object] = set()
    shared: set[object] = set()
    for entry in plan.entries.values():
        memories = {_memory(tensor) for tensor in entry.tensors if tensor.numel()}
        shared |= memories & seen
        seen |= memories
    return shared


def _memory(tensor: Tensor) -> object:
    return tensor.device, tensor.untyped_storage().data_ptr()


def live_entries(plan: Plan) -> list[Entry]:
    """Entries whose live tensors hold an average now."""
    return [entry for entry in plan.entries.values() if any(id(t) in _swapped for t in entry.tensors)]
