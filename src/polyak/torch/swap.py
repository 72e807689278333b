"""Swapping averages into the live model and back.

Where dtype and device agree, the live tensor is set to the average's memory: nothing is copied or allocated.
Otherwise as little as possible is copied: a cast of the average for another dtype or device, a backup for
tensors that are views of one memory (the flat weights of a cuDNN RNN), whose addresses other code relies on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

from polyak._core.change_detection import AttributeSnapshot, attributes_unchanged, snapshot_attributes
from polyak._core.swap_guard import NOTHING, Changed, Exchange, Swap
from polyak._core.tensor_map import TensorMap
from polyak.torch.tensor_map import TensorMap as TorchTensorMap
from polyak.torch.tensors import version as version_of

# A module's dictionary, and its original tensors.
Place: TypeAlias = tuple[dict[str, Any], dict[str, Any]]

_data = attrgetter("data")
_version = attrgetter("_version")


def _has_version(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_inference()


class SwapPlan:
    """How to swap the averages of one track into the live model: planned once, done in one pass.

    Args:
        plan: the model's tensors.
        averages: their replacements, by name.
    """

    def __init__(self, plan: TensorMap[Tensor], averages: Mapping[str, Tensor]) -> None:
        given = [entry for entry in plan.entries.values() if entry.name in averages]
        entries = [entry for entry in given if entry.piece is None]
        self._plan = cast(TorchTensorMap, plan)
        self._sharded = [entry for entry in given if entry.piece is not None]
        self._names = {id(tensor): entry.name for entry in entries for tensor in entry.tensors}
        self._places = _places(plan, self._names)
        self._buffers = {id(t) for entry in entries for t in entry.tensors if entry.kind == "buffer"}
        shared = _sharing_memory(plan)
        pairs = [(live, entry) for entry in entries for live in entry.tensors]
        exchanged = [_can_exchange(live, averages[entry.name], shared) for live, entry in pairs]
        chosen = list(zip(pairs, exchanged, strict=True))
        self._exchanged = [live for (live, _), can in chosen if can]
        self._memories = [averages[entry.name] for (_, entry), can in chosen if can]
        others = [pair for pair, can in chosen if not can]
        self._cast = [(live, entry) for live, entry in others if _memory(live) not in shared]
        self._fixed = [(live, entry) for live, entry in others if _memory(live) in shared]

    def swap(self, averages: Mapping[str, Tensor]) -> Swap:
        """The swap of these averages.

        Args:
            averages: those of the plan, or the same in another dtype if they are cast anyway.
        """
        cast = [(live, averages[entry.name].to(live.device, live.dtype)) for live, entry in self._cast]
        fixed = [(live, averages[entry.name]) for live, entry in self._fixed]
        lives = self._exchanged + [live for live, _ in cast]
        memories = self._memories + [memory for _, memory in cast]
        whole = ModelSwap(self._names, lives, memories, fixed, self._places, self._buffers)
        if not self._sharded and not self._plan.fsdp_modules:
            return whole
        from polyak.torch._sharding.swap import ShardedSwap  # see ``_sharding.kinds``

        return ShardedSwap(whole, self._sharded, averages, self._plan.mesh, self._plan.reshard)


class Swapper:
    """Keeps the ``SwapPlan`` of each track; see ``polyak._core.framework.Swapper``."""

    def __init__(self) -> None:
        self._plans: dict[str, SwapPlan] = {}

    def __reduce__(self) -> tuple[type[Swapper], tuple[()]]:
        return Swapper, ()

    def swap(
        self,
        plan: TensorMap[Tensor],
        track: str,
        averages: Mapping[str, Tensor],
        eval_tensors: Mapping[str, Tensor],
    ) -> Swap:
        if track not in self._plans:
            self._plans[track] = SwapPlan(plan, averages)
        return self._plans[track].swap(eval_tensors)

    def forget(self) -> None:
        self._plans = {}


class ModelSwap:
    """A swap of averages into live tensors; see ``polyak._core.swap_guard.Swap``.

    Args:
        names: of the tensors, by id.
        lives: tensors that are set to other memory.
        memories: that memory.
        fixed: tensors that keep their memory, with the averages that are copied into them.
        places: of the tensors; see ``_places``.
        buffers: ids of the tensors that are buffers.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        lives: Sequence[Tensor],
        memories: Sequence[Tensor],
        fixed: Sequence[tuple[Tensor, Tensor]] = (),
        places: Sequence[Place] = (),
        buffers: Collection[int] = (),
    ) -> None:
        self.names, self._buffers = names, buffers
        self._lives, self._memories, self._fixed, self._places = lives, memories, fixed, places
        self._raw = list(map(_data, lives))
        self._noted: AttributeSnapshot | None = None
        self._buffers_noted = dict[int, Tensor]()
        self._backups = [(live, live.data, live.detach().clone()) for live, _ in fixed]

    def swap_in(self) -> None:
        _point_all(self._lives, self._memories)
        for live, average in self._fixed:
            live.detach().copy_(average)  # no_grad would stay on after an interrupt at its end

    def note(self) -> None:
        lives = [*self._lives, *(live for live, _ in self._fixed)]
        self._noted = snapshot_attributes((Tensor.data_ptr, _version), filter(_has_version, lives))
        if dist.is_available() and dist.is_initialized():
            # DDP broadcasts buffers at each forward pass, in evaluation too. Up to torch 2.9 that counts as a
            # write though it changes nothing. Elsewhere nothing is copied.
            self._buffers_noted = {id(t): t.detach().clone() for t in lives if id(t) in self._buffers}

    def changed(self) -> Changed:
        if self._noted is None or attributes_unchanged(self._noted):
            return NOTHING
        (_, versions), lives = self._noted.values, self._noted.objects
        memories = dict(zip(map(id, self._lives), self._memories, strict=True))
        memories |= {id(live): memory for live, memory, _ in self._backups}
        # share_memory() moves the storage that both share, which does not count as other memory.
        moved = [t for t in lives if t.data_ptr() != memories[id(t)].data_ptr()]
        there = [(t, v) for t, v in zip(lives, versions, strict=True) if not any(t is m for m in moved)]
        written = [t for t, version in there if version_of(t) != version and not self._holds_the_same(t)]
        parameters = [self.names[id(t)] for t in written if id(t) not in self._buffers]
        buffers = [self.names[id(t)] for t in written if id(t) in self._buffers]
        found = Changed(parameters, buffers, [self.names[id(t)] for t in moved])
        return found if any(found) else NOTHING

    def _holds_the_same(self, tensor: Tensor) -> bool:
        noted = self._buffers_noted.get(id(tensor))
        return noted is not None and torch.equal(noted, tensor.detach())

    def swap_out(self) -> None:
        for store, tensors in self._places:
            store.update(tensors)
        _point_all(self._lives, self._raw)
        for live, memory, backup in reversed(self._backups):  # memories may overlap
            live.data = memory  # the block may have called .half() or similar
            memory.copy_(backup)


def exchange_of(
    lives: Sequence[Tensor], averages: Sequence[Tensor], names: Sequence[str] | None = None
) -> Exchange:
    """An exchange of single tensors, without a plan.

    Live tensors are set to the averages' memory if dtype and device agree, otherwise to a cast of it.
    """
    memories = [a.detach().to(t.device, t.dtype) for t, a in zip(lives, averages, strict=True)]
    named = zip(map(id, lives), names or ["a parameter"] * len(lives), strict=True)
    return Exchange(ModelSwap(dict(named), lives, memories))


def _can_exchange(live: Tensor, average: Tensor, shared: set[object]) -> bool:
    """Whether the live tensor can be set to the average's memory."""
    alike = (live.dtype, live.device, live.layout) == (average.dtype, average.device, average.layout)
    return alike and _memory(live) not in shared


def _point_all(lives: Sequence[Tensor], memories: Sequence[Tensor]) -> None:
    deque(map(setattr, lives, repeat("data"), memories), maxlen=0)


def _places(plan: TensorMap[Tensor], ids: Collection[int]) -> list[Place]:
    """The modules' entries of the tensors: ``.half()`` and some forward passes replace buffers."""
    found = [(store, {key: t for key, t in store.items() if id(t) in ids}) for store in plan.contents.stores]
    return [(store, tensors) for store, tensors in found if tensors]


def _sharing_memory(plan: TensorMap[Tensor]) -> set[object]:
    """Storages that more than one planned entry uses."""
    seen: set[object] = set()
    shared: set[object] = set()
    for entry in [entry for entry in plan.entries.values() if entry.piece is None]:
        memories = {_memory(tensor) for tensor in entry.tensors}
        shared |= memories & seen
        seen |= memories
    return shared


def _memory(tensor: Tensor) -> object:
    if tensor.numel() == 0 or tensor.layout != torch.strided:
        return id(tensor)  # empty: no memory to share
    return tensor.device, tensor.untyped_storage().data_ptr()
