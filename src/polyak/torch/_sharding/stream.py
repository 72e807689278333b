"""The rows of sharded tensors on their way to rank 0, which writes them into one file.

Rank 0 asks for a block of rows of one tensor from one holder after the other; everyone else answers until it
hears the end. So no rank ever has more than a block in memory beside what it holds, and the order of the file
does not depend on how tensors are cut. Replicas are sent once, by the first rank that holds them.

Before its file replaces the old one, rank 0 asks every rank whether its tensors are still those of the
beginning; a rank that was lost does not answer, and then the old file stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from math import prod
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from polyak._core.agreement import Report, disagreement
from polyak._core.sharded_files import Load
from polyak._files.boxes import Box, block_at, blocks, overlap
from polyak.errors import CheckpointError
from polyak.torch._sharding.messages import Channel, LostError, described, error_of

BLOCK = 1 << 24  # bytes of the rows that are sent and written at a time
_ADVICE = "Every rank must call this, at the same step. The file was not replaced"


class _Request(IntEnum):
    ROWS = 0  # of the tensor of this number, from this element on
    WAIT = 1  # rank 0 is busy with others
    CONFIRM = 2  # whether your tensors are unchanged
    DONE = 3
    FAILED = 4  # followed by the error


class Stream:
    """One file's pieces, from the ranks that hold them to rank 0; see ``polyak._core.sharded_files.Stream``.

    Args:
        channel: of these ranks, under a tag of this stream.
        load: this rank's part.
        holders: on rank 0 the ranks and boxes of each tensor, every element once.
        squares: on rank 0 the sums of theirs.
    """

    def __init__(
        self,
        channel: Channel,
        load: Load[Tensor],
        holders: Mapping[str, Mapping[int, Box]],
        squares: tuple[float, float],
    ) -> None:
        self._channel, self._load, self._holders, self.squares = channel, load, holders, squares
        self._names = sorted(load.tensors)
        self._patience = channel.timeout.total_seconds() / 4
        self._heard = dict.fromkeys(channel.others, monotonic())

    def write(self, write: Callable[[Callable[[], None]], None]) -> None:
        if self._channel.is_first:
            self._lead(write)
        else:
            self._serve()

    def _lead(self, write: Callable[[Callable[[], None]], None]) -> None:
        try:
            write(self._confirm)
        except BaseException as error:
            self._end(_Request.FAILED, error)
            raise
        self._end(_Request.DONE)

    def rows(self, name: str) -> Iterator[Tensor]:
        mine, number = self._load.tensors[name], self._names.index(name)
        whole = self._load.report.held[name].whole
        limit = BLOCK // mine.itemsize
        scratch = torch.empty(min(limit, prod(whole)), dtype=mine.dtype)
        for start, block in blocks(whole, limit):
            out = scratch[: block.size].view(block.shape)
            for rank, box in self._holders[name].items():
                part = overlap(box, block)
                if part is None:
                    continue
                place = out[part.slices_in(block)]
                if rank == self._channel.me:
                    place.copy_(mine[part.slices_in(box)])
                else:
                    self._fetch(name, rank, [_Request.ROWS, number, start], place)
            self._keep_waiting()
            yield out

    def _fetch(self, name: str, rank: int, request: list[int], place: Tensor) -> None:
        target = (
            place if place.is_contiguous() else torch.empty_like(place, memory_format=torch.contiguous_format)
        )
        try:
            self._ask(rank, request)
            self._channel.receive_tensor(rank, target)
        except LostError as error:
            raise CheckpointError(f"{name}: {error}. {_ADVICE}.") from error
        if target is not place:
            place.copy_(target)

    def _ask(self, rank: int, request: list[int]) -> None:
        self._channel.send_numbers(rank, request)
        self._heard[rank] = monotonic()

    def _keep_waiting(self) -> None:
        """Those who hold nothing that is needed now must not take rank 0 for dead."""
        for rank, last in self._heard.items():
            if monotonic() - last > self._patience:
                with _named():
                    self._ask(rank, [_Request.WAIT, 0, 0])

    def _confirm(self) -> None:
        self._load.check()
        missing: LostError | None = None
        objections: list[str] = []
        for rank in self._channel.others:
            try:  # each in turn, even after one is lost: who sends an answer waits until it is heard
                self._ask(rank, [_Request.CONFIRM, 0, 0])
                objection = self._channel.receive(rank)
                objections += [] if objection is None else [f"rank {rank}: {objection}"]
            except LostError as error:
                missing = missing or error
        if missing is not None:
            raise CheckpointError(f"{missing}. {_ADVICE}.") from missing
        if objections:
            raise CheckpointError(objections[0])

    def _end(self, request: _Request, error: BaseException | None = None) -> None:
        """Tell everyone who is still there."""
        for rank in self._channel.others:
            try:
                self._ask(rank, [request, 0, 0])
                if error is not None:
                    self._channel.send(rank, described(error, self._channel.me))
            except LostError:
                continue  # the file is whole, or the error names who was lost first

    def _serve(self) -> None:
        first = self._channel.ranks[0]
        with _named():
            while True:
                request, number, start = self._channel.receive_numbers(first, 3)
                if request == _Request.ROWS:
                    self._channel.send_tensor(first, self._part(self._names[number], start))
                elif request == _Request.CONFIRM:
                    self._channel.send(first, self._objection())
                elif request == _Request.FAILED:
                    raise error_of(self._channel.receive(first))
                elif request == _Request.DONE:
                    return

    def _part(self, name: str, start: int) -> Tensor:
        mine, held = self._load.tensors[name], self._load.report.held[name]
        box = Box(held.offset, held.shape)
        part = overlap(block_at(held.whole, BLOCK // mine.itemsize, start), box)
        assert part is not None  # rank 0 asks for what this rank announced
        return mine[part.slices_in(box)].detach().cpu().contiguous()

    def _objection(self) -> str | None:
        try:
            self._load.check()
        except CheckpointError as error:
            return str(error)
        return None


class Ranks(Channel):
    """The ranks of an average; see ``polyak._core.sharded_files.Ranks``."""

    def stream(self, load: Callable[[], Load[Tensor]]) -> Stream:
        loads: list[Load[Tensor]] = []
        holders: dict[str, dict[int, Box]] = {}
        squares = [0.0, 0.0]

        def mine() -> Any:
            loads.append(load())
            return loads[0].report.to_json()

        def judge(said: dict[int, Any]) -> int:
            reports = {rank: Report.from_json(values) for rank, values in said.items()}
            if different := disagreement(reports):
                raise CheckpointError(f"{different}. {_ADVICE}.")
            holders.update(_holders(reports))
            once = [reports[rank].held[name].squares for name, ranks in holders.items() for rank in ranks]
            squares[:] = (sum(one[i] for one in once) for i in (0, 1))
            return self.another()

        tag = self.agree(mine, judge)
        return Stream(self.tagged(tag), loads[0], holders, (squares[0], squares[1]))


def _holders(reports: Mapping[int, Report]) -> dict[str, dict[int, Box]]:
    """For each tensor the first rank with each of its boxes; empty ones are nobody's."""
    found: dict[str, dict[Box, int]] = {}
    for rank, report in reports.items():
        for name, held in report.held.items():
            box = Box(held.offset, held.shape)
            if box.size:
                found.setdefault(name, {}).setdefault(box, rank)
    return {name: {rank: box for box, rank in boxes.items()} for name, boxes in found.items()}


@contextmanager
def _named() -> Generator[None]:
    try:
        yield
    except LostError as error:
        raise CheckpointError(f"{error}. {_ADVICE}.") from error
