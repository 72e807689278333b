"""The average inside the live model, for a while.

Where dtype and device allow it the live tensor is pointed at the average's memory: nothing is copied and
nothing allocated, and the average stays what it is. Elsewhere the fewest values are: a cast of the
average for another dtype or device, a backup for tensors that are views of one memory (the flat
weights of a cuDNN RNN), whose addresses other code relies on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from polyak.core.live import claim
from polyak.core.plan import Entry
from polyak.torch.plan import Plan

# A live tensor, the memory it had, and a copy of the values where the memory itself was written to.
Touched: TypeAlias = tuple[Tensor, Tensor, Tensor | None]

_data = attrgetter("data")


class Swap:
    """How the averages of one track get into the live model: found once, carried out in one sweep.

    Args:
        plan: the model's tensors.
        averages: what is to take their place, by name.
    """

    def __init__(self, plan: Plan, averages: Mapping[str, Tensor]) -> None:
        entries = [entry for entry in plan.entries.values() if entry.name in averages]
        self._names = {id(tensor): entry.name for entry in entries for tensor in entry.tensors}
        self._places = _places(plan, self._names)
        shared = _sharing_memory(plan)
        pairs = [(live, entry) for entry in entries for live in entry.tensors]
        exchanged = [_can_exchange(live, averages[entry.name], shared) for live, entry in pairs]
        chosen = list(zip(pairs, exchanged, strict=True))
        self._exchanged = [live for (live, _), can in chosen if can]
        self._memories = [averages[entry.name] for (_, entry), can in chosen if can]
        self._others: list[tuple[Tensor, Entry[Tensor], bool]] = [
            (live, entry, _memory(live) in shared) for (live, entry), can in chosen if not can
        ]

    def enter(self, averages: Mapping[str, Tensor], undo: ExitStack) -> None:
        """Put the averages into the live model; unwinding ``undo`` takes them out again.

        The way back is noted before each tensor is touched, so an exception at any point restores all.

        Args:
            averages: those the swap was made for, or the same in another dtype where they are cast anyway.
            undo: gets the way back.

        Raises:
            SwapError: another average is in some of these tensors.
        """
        claim(self._names, undo)
        undo.callback(_put_back, self._places)
        undo.callback(_point_all, self._exchanged, list(map(_data, self._exchanged)))
        _point_all(self._exchanged, self._memories)
        touched: list[Touched] = []
        undo.callback(_take_out, touched)
        with torch.no_grad():
            for live, entry, fixed in self._others:
                average = averages[entry.name]
                touched.append((live, live.data, live.detach().clone() if fixed else None))
                if fixed:
                    live.copy_(average)
                else:
                    _point(live, average.to(live.device, live.dtype))


@contextmanager
def swapped(lives: Sequence[Tensor], averages: Sequence[Tensor]) -> Generator[None]:
    """The live tensors hold the averages while the block runs, for those who have no plan.

    Tensors point at the averages' memory where dtype and device agree; elsewhere at a cast of it.

    Raises:
        SwapError: another average is in one of them.
    """
    memories = [a.detach().to(t.device, t.dtype) for t, a in zip(lives, averages, strict=True)]
    with ExitStack() as undo:
        claim(dict.fromkeys(map(id, lives), "a parameter"), undo)
        undo.callback(_point_all, lives, list(map(_data, lives)))
        _point_all(lives, memories)
        yield


def _can_exchange(live: Tensor, average: Tensor, shared: set[object]) -> bool:
    """Whether the live tensor can simply point at the average's memory."""
    alike = (live.dtype, live.device, live.layout) == (average.dtype, average.device, average.layout)
    return alike and _memory(live) not in shared


def _point_all(lives: Sequence[Tensor], memories: Sequence[Tensor]) -> None:
    deque(map(setattr, lives, repeat("data"), memories), maxlen=0)


def _take_out(touched: Sequence[Touched]) -> None:
    with torch.no_grad():
        for live, memory, backup in reversed(touched):  # memories may overlap
            _point(live, memory)  # a fixed one too: the block may have called .half() and the like
            if backup is not None:
                memory.copy_(backup)


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory


def _places(plan: Plan, ids: Collection[int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Where the tensors are: ``.half()`` and some forward passes put new buffers in their place."""
    found = [(store, {key: t for key, t in store.items() if id(t) in ids}) for store in plan.contents.stores]
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
