"""Reducing tensors over the processes of paddle.distributed."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor


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
