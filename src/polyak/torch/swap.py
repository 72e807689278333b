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
from polyak.torch.plan import Plan

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
    _keep_places(plan, {id(tensor) for entry in entries for tensor in entry.tensors}, undo)
    with torch.no_grad():
        for entry in entries:
            average = averages[entry.name]
            for tensor in entry.tensors:
                _swapped.add(id(tensor))
                undo.callback(_swapped.discard, id(tensor))
                _put(tensor, average, _memory(tensor) in shared, undo.callback)


def _keep_places(plan: Plan, swapped: set[int], undo: ExitStack) -> None:
    """Each goes back to its name: ``.half()`` and some forward passes put new buffers in their place."""
    for store in plan.stores:
        undo.callback(store.update, {key: value for key, value in store.items() if id(value) in swapped})


def _put(live: Tensor, average: Tensor, fixed: bool, on_exit: Callable[..., object]) -> None:
    memory = live.data
    on_exit(_point, live, memory)  # also where nothing is exchanged: the block may call .half() and the like
    if fixed:
        on_exit(_copy, memory, memory.clone())
        memory.copy_(average)
    else:
        _point(live, average.to(live.device, live.dtype))  # the average itself when both already agree


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory


def _copy(memory: Tensor, backup: Tensor) -> None:
    with torch.no_grad():
        memory.copy_(backup)


def _sharing_memory(plan: Plan) -> set[object]:
    """Memories that more than one planned entry lies in."""
    seen: set[object] = set()
    shared: set[object] = set()
    for entry in plan.entries.values():
        memories = {_memory(tensor) for tensor in entry.tensors}
        shared |= memories & seen
        seen |= memories
    return shared


def _memory(tensor: Tensor) -> object:
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return id(tensor)  # no memory that another tensor could lie in
    return tensor.device, tensor.untyped_storage().data_ptr()


def holds_average(plan: Plan) -> bool:
    """Whether any of the plan's live tensors holds an average now, whosever it is."""
    return bool(_swapped) and any(id(t) in _swapped for entry in plan.entries.values() for t in entry.tensors)
