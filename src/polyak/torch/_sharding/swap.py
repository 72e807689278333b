"""Swapping averages into a model of which this process holds pieces.

Other code holds the memory of the pieces: ``fully_shard`` gathers from a private buffer that they are views
of. So their values are exchanged, in parts of 16 MiB through one scratch tensor, and the averages' memory
holds the raw weights meanwhile. Under ``shard=`` each process exchanges its own rows and sends them to the
others; the raw rows of the others need no backup, since they send them again at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import length_hint, methodcaller
from typing import Literal, NamedTuple, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from polyak._core.swap_guard import NOTHING, Changed, Swap
from polyak._core.tensor_map import TensorEntry
from polyak.errors import SwapError
from polyak.torch._sharding.kinds import is_dtensor
from polyak.torch.tensors import version

PART = 1 << 24  # bytes exchanged or sent at a time
_ALIGNED = 16  # bytes: tensors of every dtype can be views of a buffer at multiples of it

Entry: TypeAlias = TensorEntry[Tensor]
Stage: TypeAlias = Literal["apart", "saved", "shown"]


class ShardedSwap:
    """A swap of averages into pieces; see ``polyak._core.swap_guard.Swap``.

    Args:
        whole: the swap of the tensors that are whole here, such as buffers.
        entries: those of which pieces are here.
        averages: their averages, by name.
        mesh: the processes that divide the average of a replicated model; None if the model is sharded.
        reshard: puts sharded parameters back into modules that hold whole ones.
    """

    def __init__(
        self,
        whole: Swap,
        entries: Sequence[Entry],
        averages: Mapping[str, Tensor],
        mesh: DeviceMesh | None,
        reshard: Callable[[], None],
    ) -> None:
        self.names = {**whole.names, **{id(t): entry.name for entry in entries for t in entry.tensors}}
        self._whole, self._entries, self._reshard = whole, entries, reshard
        self._values = ValueExchange([(entry.live, averages[entry.name]) for entry in entries])
        self._replicas = [(t, t.data) for entry in entries for t in entry.tensors if not is_dtensor(t)]
        tensors = [entry.tensors[0].data for entry in entries]
        self._shown = None if mesh is None else RowsOfAll(tensors, mesh)
        self._restored = None if mesh is None else RowsOfAll(tensors, mesh)
        self._leaving = False
        self._noted: list[list[int]] = []

    def swap_in(self) -> None:
        self._reshard()
        self._whole.swap_in()
        self._values.show()
        if self._shown is not None:
            self._shown.send()

    def swap_out(self) -> None:
        self._reshard()  # whole parameters made of the average would be used again
        if self._shown is not None and not self._leaving:
            # After an interrupt too: the others wait for these rows.
            self._values.show()
            self._shown.send()
        self._leaving = True
        self._whole.swap_out()
        for tensor, memory in self._replicas:
            tensor.data = memory
        for entry in self._entries:
            for tensor in filter(is_dtensor, entry.tensors):
                tensor._local_tensor = entry.live  # pyright: ignore[reportPrivateUsage]
        self._values.restore()
        if self._restored is not None:
            self._restored.send()

    def note(self) -> None:
        self._whole.note()
        self._noted = list(map(_versions, self._entries))

    def changed(self) -> Changed:
        parameters, buffers, replaced = map(list, self._whole.changed())
        for entry, noted in zip(self._entries, self._noted, strict=False):
            if not _in_place(entry):
                replaced.append(entry.name)
            elif _versions(entry) != noted:
                (buffers if entry.kind == "buffer" else parameters).append(entry.name)
        found = Changed(parameters, buffers, replaced)
        return found if any(found) else NOTHING


def _versions(entry: Entry) -> list[int]:
    """Of the model's tensors: a write to a DTensor is not counted by its piece."""
    return [version(tensor) for tensor in entry.tensors]


def _in_place(entry: Entry) -> bool:
    """Whether the live tensor still has the memory of its piece."""
    live = entry.tensors[0]
    if is_dtensor(live):
        return live._local_tensor is entry.live  # pyright: ignore[reportPrivateUsage]
    return live.numel() == 0 or live.untyped_storage().data_ptr() == entry.live.untyped_storage().data_ptr()


class ValueExchange:
    """Exchanges the values of live tensors and averages, and back.

    Both ways can be interrupted between any two lines and continued, or reversed: the part under way is in
    one of three stages, and in each it is known which of the three tensors holds what.

        apart: the live tensor holds θ, the average itself; the scratch tensor nothing.
        saved: the scratch tensor holds θ, the average itself; the live tensor is being written.
        shown: the scratch tensor holds θ, the live tensor the average; the average is being written.

    Of tensors whose dtype is not their average's a copy is kept instead.

    Args:
        pairs: live tensors and averages of the same shapes.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        held = [(live, average) for live, average in pairs if live.numel()]
        self._cast = [(live, average, live.clone()) for live, average in held if live.dtype != average.dtype]
        alike = [(live, average) for live, average in held if live.dtype == average.dtype]
        self._parts = [
            part for live, average in alike for part in zip(_rows(live), _rows(average), strict=True)
        ]
        self._scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        for live, _ in self._parts:
            place = live.dtype, live.device
            known = self._scratch.get(place)
            if known is None or known.numel() < live.numel():
                self._scratch[place] = live.new_empty(live.numel())
        # One assignment, so that no interrupt comes between the two: parts exchanged, stage of the next.
        self._state: tuple[int, Stage] = 0, "apart"

    def show(self) -> None:
        """Put the averages into the live tensors."""
        for live, average, _ in self._cast:
            live.copy_(average)
        while self._state[0] < len(self._parts):
            done, stage = self._state
            live, average = self._parts[done]
            scratch = self._scratch_for(live)
            if stage == "apart":
                scratch.copy_(live)
                self._state = done, "saved"
            elif stage == "saved":
                live.copy_(average)
                self._state = done, "shown"
            else:
                average.copy_(scratch)
                self._state = done + 1, "apart"

    def restore(self) -> None:
        """Put θ back into the live tensors."""
        for live, _, raw in self._cast:
            live.copy_(raw)
        while self._state != (0, "apart"):
            done, stage = self._state
            if stage == "apart":
                live, average = self._parts[done - 1]
                self._scratch_for(live).copy_(average)
                self._state = done - 1, "shown"
                continue
            live, average = self._parts[done]
            if stage == "shown":
                average.copy_(live)
                self._state = done, "saved"
            else:
                live.copy_(self._scratch_for(live))
                self._state = done, "apart"

    def _scratch_for(self, live: Tensor) -> Tensor:
        return self._scratch[live.dtype, live.device][: live.numel()].view(live.shape)


class RowsOfAll:
    """Sends each process's rows of every tensor to all the others, once.

    It can be interrupted between any two lines and continued, and no message is sent twice: messages are
    taken from an iterator and sent in one call, during which Python raises no interrupt, and what is left
    in the iterator tells which one was last.

    Args:
        tensors: of the same shapes in all processes.
        mesh: of one dimension.
    """

    def __init__(self, tensors: Sequence[Tensor], mesh: DeviceMesh) -> None:
        group = mesh.get_group()
        self._rank, self._world, self._done, self._broken = dist.get_rank(group), mesh.size(), 0, False
        self._messages = list(_messages(tensors, self._world))
        size = max((message.size for message in self._messages), default=0)
        devices = {tensor.device for tensor in tensors}
        buffer = torch.empty(size, dtype=torch.uint8, device=devices.pop() if devices else "cpu")
        self._buffer = buffer
        sent = [[buffer[: message.size]] for message in self._messages]
        self._waiting = iter(sent)
        roots = [_from(message.root) for message in self._messages]
        self._calls = map(group.broadcast, self._waiting, roots)

    def send(self) -> None:
        """Send and receive what is left.

        Raises:
            SwapError: another process is gone, or does not do the same.
        """
        while self._done < len(self._messages) and not self._broken:
            message = self._messages[self._done]
            mine = message.root == self._rank
            if length_hint(self._waiting) == len(self._messages) - self._done:
                for part, place in message.parts if mine else ():
                    self._view(part, place).copy_(part)
                try:
                    deque(map(methodcaller("wait"), islice(self._calls, 1)), maxlen=0)
                except RuntimeError as error:
                    self._broken = True
                    raise SwapError(
                        f"the rows of rank {message.root} of the shard= group did not arrive while the "
                        "average was put into the model or taken out of it: a process has ended, or has not "
                        "entered or left average_parameters(), which all of them do. The model's weights are "
                        f"incomplete: load them from a checkpoint. ({error})"
                    ) from error
            for part, place in () if mine else message.parts:
                part.copy_(self._view(part, place))
            self._done += 1

    def _view(self, part: Tensor, place: int) -> Tensor:
        return self._buffer[place : place + part.nbytes].view(part.dtype).view(part.shape)


class _Message(NamedTuple):
    """Rows of one process: (rows, the byte at which they begin), and the bytes in all."""

    root: int
    parts: list[tuple[Tensor, int]]
    size: int


def _messages(tensors: Sequence[Tensor], world: int) -> Iterator[_Message]:
    for root in range(world):
        parts: list[tuple[Tensor, int]] = []
        size = 0
        for rows in (part for tensor in tensors for part in _rows_of(tensor, root, world)):
            if parts and size + rows.nbytes > PART:
                yield _Message(root, parts, size)
                parts, size = [], 0
            parts.append((rows, size))
            size += -(-rows.nbytes // _ALIGNED) * _ALIGNED
        if parts:
            yield _Message(root, parts, size)


def _rows_of(tensor: Tensor, rank: int, world: int) -> Sequence[Tensor]:
    """The rows of one process, in parts."""
    each = tensor.chunk(world)  # fewer chunks than processes where there are fewer rows
    return _rows(each[rank]) if rank < len(each) else ()


def _rows(tensor: Tensor) -> Sequence[Tensor]:
    """The tensor in parts of at most ``PART`` bytes, one row at least."""
    rows = tensor if tensor.dim() else tensor.view(1)
    if not rows.numel():
        return ()
    return cast("tuple[Tensor, ...]", rows.split(max(1, PART * len(rows) // rows.nbytes)))


def _from(root: int) -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = root, 0
    return options
