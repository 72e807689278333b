"""A small model under every way of sharding, its training, and whole tensors of its averages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import polyak
from polyak.torch._sharding.layout import as_dtensor

BATCH, FEATURES, HIDDEN = 8, 6, 10


class Net(nn.Module):
    """Rows that 3 and 4 ranks do not divide, fewer rows than ranks, a frozen parameter, buffers."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, HIDDEN)
        self.outer = nn.Linear(HIDDEN, FEATURES)
        self.again = nn.Linear(FEATURES, HIDDEN)
        if tied:
            self.again.weight = self.inner.weight
        self.head = nn.Linear(HIDDEN, 2)
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.register_buffer("running_mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.tanh(self.again(self.outer(torch.tanh(self.inner(x)))))) * self.frozen[0]
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(y.mean(0).to(self.running_mean.dtype), 0.1)
                self.count += 1
        return y


class Sharded(NamedTuple):
    """model: as it is trained.  ema: keywords of ``polyak.EMA``.  peers: ranks that see the same data."""

    model: nn.Module
    ema: dict[str, Any]
    peers: int = 1


def seeded(**options: Any) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def ddp(dtype: torch.dtype = torch.float32) -> Sharded:
    return Sharded(DistributedDataParallel(seeded().to(dtype)), {})


def divided(dtype: torch.dtype = torch.float32) -> Sharded:
    return Sharded(DistributedDataParallel(seeded().to(dtype)), {"shard": dist.group.WORLD})


def fully(
    model: nn.Module | None = None, mesh: tuple[int, ...] | None = None, tied: bool = False, **options: Any
) -> Sharded:
    net: Any = seeded() if model is None else model
    names = None if mesh is None else ("replicate", "shard")[-len(mesh) :]
    where = init_device_mesh("cpu", mesh or (dist.get_world_size(),), mesh_dim_names=names)
    if not tied:
        fully_shard(net.inner, mesh=where, **options)
    fully_shard(net, mesh=where, **options)
    return Sharded(net, {})


PLAN: dict[str, Any] = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}


def tensor_parallel() -> Sharded:
    net = seeded()
    parallelize_module(net, init_device_mesh("cpu", (dist.get_world_size(),)), PLAN)
    return Sharded(net, {}, dist.get_world_size())


def both() -> Sharded:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    net: Any = seeded()
    parallelize_module(net, mesh["tp"], PLAN)
    fully_shard(net, mesh=mesh["dp"])
    return Sharded(net, {}, 2)


def materialised() -> Sharded:
    with torch.device("meta"):
        net: Any = Net()
    fully(net)
    net.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.fill_(1.0) if tensor.shape == (5,) else tensor.normal_(0, 0.3)
        net.running_mean.zero_()
        net.count.zero_()
    return Sharded(net, {})


def wrapped() -> Sharded:
    net: Any = seeded()
    net.inner = checkpoint_wrapper(net.inner)
    net.outer = torch.compile(net.outer, backend="eager")
    fully(net)
    return Sharded(net, {})


def low() -> MixedPrecisionPolicy:
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


MODES: dict[str, Callable[[], Sharded]] = {
    "ddp": ddp,
    "shard=": divided,
    "shard= bfloat16": lambda: divided(torch.bfloat16),
    "fully_shard": fully,
    "not resharded": lambda: fully(reshard_after_forward=False),
    "hybrid": lambda: fully(mesh=(2, 2)),
    "bfloat16": lambda: fully(seeded().bfloat16()),
    "mixed precision": lambda: fully(mp_policy=low()),
    "offloaded": lambda: fully(offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "tensor parallel": tensor_parallel,
    "fully_shard and tensor parallel": both,
    "tied": lambda: fully(seeded(tied=True), tied=True),
    "meta": materialised,
    "wrapped": wrapped,
}


def batch(step: int, rank: int, model: nn.Module) -> Tensor:
    """Each rank's own data."""
    dtype = next(model.parameters()).dtype
    random = torch.Generator().manual_seed(
        1000 * step + (0 if "tensor" in str(getattr(model, "mode", "")) else rank)
    )
    return torch.randn(BATCH, FEATURES, generator=random).to(dtype)


def train(sharded: Sharded, optimizer: torch.optim.Optimizer, step: int, rank: int) -> None:
    optimizer.zero_grad()
    sharded.model(batch(step, rank // sharded.peers, sharded.model)).square().mean().backward()
    optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


def theta(model: nn.Module) -> dict[str, Tensor]:
    """The run's whole parameters, in float64, by their plain names."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    names = {
        name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", ""): t
        for name, t in inner.named_parameters()
    }
    return {name: whole(tensor).double() for name, tensor in names.items()}


def average(ema: polyak.EMA[Any], track: str = "average") -> dict[str, Tensor]:
    """An average's whole tensors, on every rank; buffers are the rank's own."""
    pieces = ema._averages.plan.pieces  # pyright: ignore[reportPrivateUsage]
    named = ema.tracks[track].tensors
    return {
        name: whole(as_dtensor(pieces[name], tensor)) if name in pieces else tensor.clone()
        for name, tensor in named.items()
    }
