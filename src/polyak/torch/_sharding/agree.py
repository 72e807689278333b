"""Agreement between ranks: that they hold pieces of one average, and the id of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from polyak._core.agreement import CURE, Report, disagreement
from polyak._core.sharded_files import Piece, Ranks
from polyak._files.boxes import Box, blocks
from polyak.errors import PlanError
from polyak.torch.tensors import as_array

if TYPE_CHECKING:
    from polyak.torch._sharding.layout import ShardedPiece

_BLOCK = 1 << 24  # bytes that are copied to the host at a time


def verify(ranks: Ranks[Tensor], report: Callable[[], Report]) -> None:
    """Check that the ranks hold pieces of one average; each must call this.

    Args:
        ranks: that are compared.
        report: makes this rank's report.

    Raises:
        PlanError: they do not, or a rank was lost.
    """

    def judge(said: dict[int, Any]) -> None:
        different = disagreement({rank: Report.from_json(values) for rank, values in said.items()})
        if different is not None:
            raise PlanError(f"{different}. {CURE}")

    ranks.agree(lambda: report().to_json(), judge, PlanError)


def digest(tensor: Tensor) -> str:
    """A digest of a tensor's bytes in row-major order, however it is laid out."""
    whole, sums = Box.of_all(tensor.shape), hashlib.blake2b(digest_size=8)
    for _, block in blocks(tensor.shape, _BLOCK // tensor.itemsize):
        sums.update(as_array(tensor[block.slices_in(whole)]).tobytes())
    return sums.hexdigest()


def agreed_run(run: str, pieces: Iterable[Piece[Tensor]]) -> str:
    """The id of the run on the first rank of the largest mesh, in all of its ranks.

    It is broadcast along one dimension of the mesh after the other, which needs no group but the mesh's own.
    """
    mesh = max((cast("ShardedPiece", piece).mesh for piece in pieces), key=DeviceMesh.size)
    letters = torch.tensor(bytearray(run.encode()), dtype=torch.uint8, device=mesh.device_type)
    here = mesh.get_coordinate()
    assert here is not None  # this rank holds pieces laid out on the mesh
    for dimension in range(mesh.ndim):
        line = mesh.mesh[tuple(slice(None) if d == dimension else i for d, i in enumerate(here))]
        dist.broadcast(letters, src=int(line[0]), group=mesh.get_group(dimension))
    return letters.cpu().numpy().tobytes().decode()
