"""Which part of a tensor this process holds.

A part is a box of the whole tensor. ``fully_shard`` and tensor parallelism keep it in a DTensor; under
``shard=`` it is a range of rows of a parameter that every process has.
"""

# pyright: reportPrivateUsage=false
# The public ``to_local()`` makes a new alias of a parameter at each call and takes 160 times as long; the box
# of a DTensor has no public name.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import Placement

from polyak._core.sharded_files import Piece
from polyak._core.tensor_map import TensorEntry
from polyak.errors import ConfigError, PlanError
from polyak.torch._sharding.kinds import is_dtensor
from polyak.torch.tensors import overwrite


@dataclass(frozen=True)
class ShardedPiece(Piece[Tensor]):
    """This process's box of a tensor that is spread over a mesh.

    mesh, placements: as in a DTensor.
    stride: of the whole tensor.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    stride: tuple[int, ...]

    @property
    def layout(self) -> object:
        """Equal for pieces of one shape that lie on the processes in the same way."""
        return self.mesh, self.placements, self.whole


def piece_of(tensor: DTensor, name: str) -> ShardedPiece:
    """The part of a DTensor that this process holds.

    Raises:
        PlanError: the tensor is a sum over processes that was not taken yet.
    """
    if any(isinstance(placement, Partial) for placement in tensor.placements):
        raise PlanError(
            f"{name} is a DTensor placed as {tensor.placements}: a sum over processes has no value here. "
            "Redistribute it to Shard or Replicate first."
        )
    return _boxed(
        tensor._local_tensor, tuple(tensor.shape), tensor.device_mesh, tensor.placements, tensor.stride()
    )


def rows_of(parameter: Tensor, mesh: DeviceMesh) -> ShardedPiece:
    """This process's rows of a parameter that every process has, by the rule of ``torch.chunk``.

    The first processes have most; where there are fewer rows than processes, the last have none.
    """
    whole = tuple(parameter.shape)
    piece = _boxed(parameter.detach(), whole, mesh, (Shard(0),), parameter.stride())
    return replace(piece, tensor=cut(piece, parameter.detach(), _box(whole, mesh, (Shard(0),))[0]))


def as_dtensor(piece: ShardedPiece, local: Tensor) -> DTensor:
    """A tensor of the piece's shape as this process's part of a DTensor laid out like the piece.

    Shape and stride are given: by itself torch guesses the local shape times the number of processes, which
    is wrong for uneven rows.
    """
    whole, stride = torch.Size(piece.whole), piece.stride
    return DTensor.from_local(
        local, piece.mesh, piece.placements, run_check=False, shape=whole, stride=stride
    )


def cut(piece: ShardedPiece, whole: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """This process's box of a whole tensor, as a view."""
    for d, (start, size) in enumerate(zip(piece.offset, shape or piece.tensor.shape, strict=True)):
        whole = whole.narrow(d, min(start, whole.shape[d]), size)
    return whole


def part_of(given: Tensor, piece: ShardedPiece | None) -> Tensor:
    """This process's part of a tensor that is whole, or a DTensor.

    If it is laid out otherwise than the piece, all processes of its mesh call this.
    """
    if isinstance(given, DTensor):
        theirs = piece_of(given, "the tensor")
        if piece is not None and theirs.layout == piece.layout:
            return theirs.tensor
        given = given.full_tensor()
    return given if piece is None else cut(piece, given).clone()  # a view would keep the whole alive


def ranks_of(pieces: Iterable[ShardedPiece]) -> list[int]:
    """The global ranks of the processes that together hold these pieces, in the mesh's order."""
    return max((cast("list[int]", piece.mesh.mesh.flatten().tolist()) for piece in pieces), key=len)


def stretches(piece: ShardedPiece) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The parts of the piece that are contiguous in the whole tensor, in row-major order.

    Yields:
        The index of the first element in the whole tensor, and that of the part in the piece's leading
        dimensions, ``()`` for all of it.
    """
    shape = piece.tensor.shape
    steps = [prod(piece.whole[d + 1 :]) for d in range(len(shape))]  # elements from one index to the next
    last = max((d for d, size in enumerate(shape) if size < piece.whole[d]), default=0)
    if prod(shape[:last]) == 1:
        last = 0
    base = sum(start * step for start, step in zip(piece.offset, steps, strict=True))
    for index in product(*map(range, shape[:last])):
        yield base + sum(i * step for i, step in zip(index, steps, strict=False)), index


def copy_between(piece: Piece[Tensor] | None, tensor: Tensor, target: TensorEntry[Tensor]) -> None:
    """Copy a tensor to an entry that may be sharded otherwise; all processes of the mesh call this.

    Args:
        piece: the layout of ``tensor``; None if it is whole.
        tensor: the values here.
        target: of another model.
    """
    there = target.piece if is_dtensor(target.tensors[0]) else None  # a replicated parameter is written whole
    if isinstance(piece, ShardedPiece) and isinstance(there, ShardedPiece) and piece.layout == there.layout:
        overwrite(there.tensor, tensor)
        return
    whole = as_dtensor(piece, tensor).full_tensor() if isinstance(piece, ShardedPiece) else tensor
    for place in target.tensors:
        if isinstance(there, ShardedPiece):
            overwrite(there.tensor, cut(there, whole))
        else:
            overwrite(place, whole)


def mesh_of(shard: Any, device: torch.device) -> DeviceMesh:
    """The mesh of the argument ``shard=``, a process group or a mesh of one dimension.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(shard, DeviceMesh) and shard.ndim == 1:
        return shard
    if isinstance(shard, dist.ProcessGroup):
        return DeviceMesh.from_group(shard, device.type)
    raise ConfigError(
        f"shard={shard!r}: must be a process group, such as torch.distributed.group.WORLD, or a DeviceMesh "
        "of one dimension: the processes that divide the average among themselves."
    )


def _boxed(
    local: Tensor,
    whole: tuple[int, ...],
    mesh: DeviceMesh,
    placements: tuple[Placement, ...],
    stride: tuple[int, ...],
) -> ShardedPiece:
    return ShardedPiece(local, _box(whole, mesh, placements)[1], whole, mesh, tuple(placements), stride)


def _box(
    whole: tuple[int, ...], mesh: DeviceMesh, placements: Sequence[Placement]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset."""
    return compute_local_shape_and_global_offset(whole, mesh, placements)
