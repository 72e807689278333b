"""Reducing tensors over the processes of paddle.distributed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import paddle
import paddle.distributed as dist
from paddle import Tensor

from polyak.errors import PlanError
from polyak.paddle.tensors import as_array

if TYPE_CHECKING:
    from polyak._core.agreement import Report


def mean_over(group: Any, tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes, in at least float32, the same bits in each."""
    wide = paddle.float32 if tensor.dtype in (paddle.float16, paddle.bfloat16) else tensor.dtype
    total = tensor.detach().clone().astype(wide)
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


def first_of(group: Any, tensor: Tensor) -> Tensor:
    """The tensor of the first process."""
    sent = tensor.detach().clone()
    dist.broadcast(sent, src=0 if group is None else group.ranks[0], group=group)
    return sent


def verify(group: Any, report: Callable[[], Report]) -> None:
    """Check that all processes hold the same averages; each must call this.

    Raises:
        PlanError: they do not, or another process could not report.
    """
    from polyak._core.agreement import CURE, Report, disagreement  # few processes compare averages

    failure = None
    try:
        mine: list[Any] = report().to_json()
    except Exception as error:
        mine, failure = [str(error)], error
    gathered: list[list[Any]] = []
    dist.all_gather_object(gathered, mine, group=group)
    if failure is not None:
        raise failure
    ranks = range(len(gathered)) if group is None else group.ranks
    said = dict(zip(ranks, gathered, strict=True))
    for rank, values in said.items():
        if len(values) == 1:
            raise PlanError(f"rank {rank}: {values[0]}")
    different = disagreement({rank: Report.from_json(values) for rank, values in said.items()})
    if different is not None:
        raise PlanError(f"{different}. {CURE}")


def digest(tensor: Tensor) -> str:
    """A digest of a tensor's bytes in row-major order."""
    return hashlib.blake2b(as_array(tensor).tobytes(), digest_size=8).hexdigest()
