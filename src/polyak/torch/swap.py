"""The average inside the live model, for a while.

Where dtype and device allow it the live tensor is pointed at the average's memory: nothing is copied and
nothing allocated, and the average stays what it is. Elsewhere the fewest values are: a cast of the
average for another dtype or device, a backup for tensors that are views of one memory (the flat
weights of a cuDNN RNN), whose addresses other code relies on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor

from polyak.errors import SwapError
from polyak.torch.plan import Plan

# A live tensor, the memory it had, and a copy of the values where the memory itself was written to.
Touched: TypeAlias = tuple[Tensor, Tensor, Tensor | None]

# Live tensors that hold an average now, by id; they are kept alive by the swap that put them here.
_swapped: set[int] = set()


def swap_in(plan: Plan, averages: Mapping[str, Tensor], undo: ExitStack) -> None:
    """Put ``averages`` into the live model; unwinding ``undo`` takes them out again.

    The way back is noted before each tensor is touched, so an exception at any point restores all.

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
    ids = {id(tensor) for entry in entries for tensor in entry.tensors}
    undo.callback(_swapped.difference_update, ids)
    _swapped.update(ids)
    undo.callback(_put_back, _places(plan, ids))
    touched: list[Touched] = []
    undo.callback(_take_out, touched)
    with torch.no_grad():
        for entry in entries:
            average = averages[entry.name]
            for live in entry.tensors:
                fixed = _memory(live) in shared
                touched.append((live, live.data, live.detach().clone() if fixed else None))
                if fixed:
                    live.copy_(average)
                else:
                    _point(live, average.to(live.device, live.dtype))  # the average itself when both agree


def _take_out(touched: Sequence[Touched]) -> None:
    with torch.no_grad():
        for live, memory, backup in reversed(touched):  # memories may overlap
            _point(live, memory)  # a fixed one too: the block may have called .half() and the like
            if backup is not None:
                memory.copy_(backup)


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory


def _places(plan: Plan, ids: set[int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Where the tensors are: ``.half()`` and some forward passes put new buffers in their place."""
    found = [(store, {key: t for key, t in store.items() if id(t) in ids}) for store in plan.filled]
    return [(store, tensors) for store, tensors in found if tensors]


def _put_back(places: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for store, tensors in places:
        store.update(tensors)


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
