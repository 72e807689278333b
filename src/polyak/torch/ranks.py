"""Reducing tensors over the processes of torch.distributed."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over(group: dist.ProcessGroup | None, tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes, in at least float32, the same bits in each."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    total = tensor.detach().to(_device(group, tensor), wide, copy=True)
    dist.all_reduce(torch.view_as_real(total) if total.is_complex() else total, group=group)
    return total / dist.get_world_size(group)


def first_of(group: dist.ProcessGroup | None, tensor: Tensor) -> Tensor:
    """The tensor of the first process, sent as bytes: NCCL supports no booleans and few integers."""
    sent = tensor.detach().to(_device(group, tensor), copy=True).contiguous()
    first = 0 if group is None else dist.get_global_rank(group, 0)
    dist.broadcast(sent.view(-1).view(torch.uint8), src=first, group=group)
    return sent


def _device(group: dist.ProcessGroup | None, tensor: Tensor) -> torch.device:
    """The device for communication: under NCCL, averages in host memory are sent through the GPU."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device
