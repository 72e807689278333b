"""Messages between the first of some ranks and each of the others: text, numbers, and rows of tensors.

They go from one rank to one other, since a mesh of several dimensions has no group of all its ranks, and
since the error of a collective names no rank. Each waits as long as the process group's own timeout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Self

from polyak._core.sharded_files import JudgementT, ValueT
from polyak.errors import CheckpointError, ConfigError, NonFiniteError, PlanError, PolyakError, SwapError

_TAG = 0x706F6C  # of the messages that begin a verb; each stream has one of its own after that
_LAST_TAG = 0x7FFFFFFF
_numbers = count(1)


class LostError(Exception):
    """A rank died, or does not answer."""

    def __init__(self, rank: int, error: BaseException) -> None:
        reason = str(error).rpartition("] ")[2].split(". ")[0]
        super().__init__(f"rank {rank} was lost: it died, or did not take part in time ({reason})")
        self.rank = rank


@dataclass(frozen=True)
class Channel:
    """The way from the first of these ranks to the others and back.

    Args:
        ranks: of the default process group, the first one first.
        group: that the messages go through; None for the default one.
        tag: tells apart messages that are on their way at the same time.
    """

    ranks: tuple[int, ...]
    group: dist.ProcessGroup | None
    tag: int = _TAG

    @classmethod
    def between(cls, ranks: Sequence[int]) -> Self:
        """The channel of these ranks; the first time, each must call this if only NCCL connects them."""
        ranks = tuple(ranks)
        return cls(ranks, _group_for_host_memory(ranks))

    def another(self) -> int:
        """A tag that no other stream of this process has now."""
        return _TAG + (next(_numbers) * dist.get_world_size() + self.me) % (_LAST_TAG - _TAG)

    def tagged(self, tag: int) -> Self:
        """The same under another tag."""
        return replace(self, tag=tag)

    @property
    def me(self) -> int:
        """This process's rank."""
        return dist.get_rank()

    @property
    def is_first(self) -> bool:
        """Whether this process is the first of the ranks, which writes files."""
        return self.me == self.ranks[0]

    @property
    def others(self) -> tuple[int, ...]:
        """All ranks but the first."""
        return self.ranks[1:]

    @property
    def timeout(self) -> timedelta:
        """How long a message is waited for."""
        return _timeout(self.group, torch.device("cpu"))

    def send(self, rank: int, value: Any) -> None:
        """Send anything that JSON can write."""
        text = bytearray(json.dumps(value).encode())
        self.send_numbers(rank, [len(text)])
        self.send_tensor(rank, torch.frombuffer(text, dtype=torch.uint8))

    def receive(self, rank: int) -> Any:
        """What ``send`` sent."""
        (size,) = self.receive_numbers(rank, 1)
        text = torch.empty(size, dtype=torch.uint8)
        self.receive_tensor(rank, text)
        return json.loads(text.numpy().tobytes())

    def send_numbers(self, rank: int, numbers: Sequence[int]) -> None:
        self.send_tensor(rank, torch.tensor(numbers, dtype=torch.int64))

    def receive_numbers(self, rank: int, amount: int) -> list[int]:
        numbers = torch.empty(amount, dtype=torch.int64)
        self.receive_tensor(rank, numbers)
        return [int(number) for number in numbers]

    def send_tensor(self, rank: int, tensor: Tensor) -> None:
        """Send a contiguous tensor in host memory, of any dtype."""
        _naming(rank, lambda: dist.send(_bytes(tensor), rank, self.group, self.tag))

    def receive_tensor(self, rank: int, tensor: Tensor) -> None:
        """Receive into a contiguous tensor in host memory."""
        _naming(rank, lambda: dist.recv(_bytes(tensor), rank, self.group, self.tag))

    def agree(
        self,
        mine: Callable[[], ValueT],
        judge: Callable[[dict[int, ValueT]], JudgementT],
        lost: type[PolyakError] = CheckpointError,
    ) -> JudgementT:
        """See ``polyak._core.sharded_files.Ranks``."""
        said, failure = None, None
        try:
            said = mine()
        except Exception as error:
            failure = error
        report = [said] if failure is None else described(failure, self.me)
        try:
            answer = self._collect(report, judge, lost) if self.is_first else self._send_report(report)
        except LostError as error:
            raise lost(str(error)) from error
        if failure is not None:
            raise failure
        if len(answer) > 1:
            raise error_of(answer, lost)
        return answer[0]

    def _send_report(self, report: list[Any]) -> list[Any]:
        self.send(self.ranks[0], report)
        return self.receive(self.ranks[0])

    def _collect(
        self, report: list[Any], judge: Callable[[dict[int, Any]], Any], lost: type[PolyakError]
    ) -> list[Any]:
        values = {self.me: report}
        missing: LostError | None = None
        for rank in self.others:
            try:
                values[rank] = self.receive(rank)
            except LostError as error:  # the others still have to be heard, or they would wait
                missing = missing or error
        failed = [value for value in values.values() if len(value) > 1]
        try:
            if failed:
                answer = failed[0]
            elif missing is not None:
                answer = described(lost(str(missing)), self.me)
            else:
                answer = [judge({rank: value for rank, (value,) in values.items()})]
        except BaseException as error:
            self._answer(described(error, self.me))
            raise
        self._answer(answer)
        return answer

    def _answer(self, answer: list[Any]) -> None:
        for rank in self.others:
            try:
                self.send(rank, answer)
            except LostError:
                continue  # its loss shows in the next message that needs it


def described(error: BaseException, rank: int) -> list[str]:
    """An error for other ranks: the name of its class, and a text that names a rank."""
    name = type(error).__name__
    text = str(error) if isinstance(error, PolyakError) else f"{name}: {error}"
    return [name, text if re.search(r"\brank \d", text) else f"rank {rank}: {text}"]


def error_of(description: list[str], otherwise: type[PolyakError] = CheckpointError) -> PolyakError:
    """An error that another rank described: one of polyak's, or ``otherwise``."""
    name, text = description
    return _ERRORS.get(name, otherwise)(text)


_ERRORS: dict[str, type[PolyakError]] = {
    kind.__name__: kind for kind in (CheckpointError, ConfigError, NonFiniteError, PlanError, SwapError)
}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _naming(rank: int, act: Callable[[], object]) -> None:
    try:
        act()
    except RuntimeError as error:  # gloo's name an address, or nothing
        raise LostError(rank, error) from error


def _group_for_host_memory(ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
    """The default group if it can send host memory; otherwise one of gloo of these ranks, made once."""
    if "cpu:" in dist.get_backend_config():
        return None
    return _gloo(dist.group.WORLD, ranks)


@lru_cache(maxsize=16)
def _gloo(world: dist.ProcessGroup | None, ranks: tuple[int, ...]) -> dist.ProcessGroup | None:
    """Not yet run: only NCCL alone needs it, and nothing here had a GPU."""
    timeout = _timeout(world, torch.device("cuda"))
    group = dist.new_group(list(ranks), timeout, "gloo", use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)  # a number on ranks outside of it
    return group


def _timeout(group: dist.ProcessGroup | None, device: torch.device) -> timedelta:
    known = group or dist.group.WORLD
    assert known is not None
    # No public name says how long a group waits.
    return known._get_backend(device).options._timeout  # pyright: ignore[reportPrivateUsage]
