"""What ``polyak bench --plan`` computes for a cluster is what 1 to 4 real processes hold, move and send.

Each figure is taken at two sizes of the model, and its slope compared with the formula's: what does not grow
with the model, such as the header of a message, is not in the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import polyak
from polyak.bench.plan import Cluster, plan
from tests.distributed.ranks import Ranks

IO = Path("/proc/self/io")
WIDTHS = 96, 192  # rows that 1 to 4 processes divide
SAME = 2000  # bytes: headers of messages vary in number

pytestmark = pytest.mark.skipif(not IO.exists(), reason="only Linux counts the bytes that a process sends")


class Figures(NamedTuple):
    """Bytes in one process: of averages, read and written by an update, sent by it, a swap and a save."""

    held: float
    moved: float
    update: float
    block: float
    file: float


class Moved(TorchDispatchMode):
    """Counts the bytes of tensors that operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            tensors = value if isinstance(value, list | tuple) else [value]
            writes = argument.alias_info is not None and argument.alias_info.is_write
            self.bytes += sum((1 + writes) * t.nbytes for t in tensors if isinstance(t, Tensor))
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * width, bias=False)
        self.outer = nn.Linear(2 * width, width, bias=False)


def sharded(mode: str, width: int, group: int) -> tuple[nn.Module, dict[str, Any]]:
    net, world = Net(width), dist.get_world_size()
    if mode.startswith("DDP"):
        return DistributedDataParallel(net), {"shard": dist.group.WORLD} if "shard" in mode else {}
    if mode == "tensor parallel":
        cuts = {"inner": ColwiseParallel(), "outer": RowwiseParallel()}
        return parallelize_module(net, init_device_mesh("cpu", (world,)), cuts), {}
    mesh = (world // group, group) if mode == "hybrid" else (world,)
    names = ("replicate", "shard")[-len(mesh) :]
    fully_shard(net, mesh=init_device_mesh("cpu", mesh, mesh_dim_names=names))
    return net, {}


def sent(run: Callable[[], object]) -> int:
    """Bytes that this process writes during a call, to sockets and files."""
    dist.barrier()
    before = _written()
    run()
    after = _written()
    dist.barrier()
    return after - before


def _written() -> int:
    return int(next(line for line in IO.read_text().splitlines() if line.startswith("wchar")).split()[1])


def figures(rank: int, mode: str, width: int, group: int, folder: str) -> Figures:
    model, options = sharded(mode, width, group)
    ema = polyak.EMA(model, 0.9, engine="foreach", on_nonfinite="ignore", **options)

    def swap() -> None:
        with ema.average_parameters():
            pass

    ema.update()
    with Moved() as moved:
        ema.update()
    held = sum(tensor.nbytes for tensor in ema.tracks["average"].tensors.values())
    path, saves = Path(folder, "average.safetensors"), rank == 0 or mode != "DDP"
    file = sent(lambda: ema.save(path) if saves else None)
    return Figures(held, moved.bytes, sent(ema.update), sent(swap), file)


@pytest.mark.parametrize(
    ("mode", "world", "group"),
    [
        *((mode, n, 8) for mode in ("DDP", "DDP, shard=", "fully_shard") for n in (1, 2, 3, 4)),
        *(("tensor parallel", n, n) for n in (2, 4)),
        ("hybrid", 4, 2),
    ],
)
def test_processes_hold_and_move_and_send_what_the_formulas_say(
    mode: str, world: int, group: int, four: Ranks, tmp_path: Path
) -> None:
    small, large = (four.run(world, figures, mode, width, group, str(tmp_path)) for width in WIDTHS)
    more = 4 * (WIDTHS[1] ** 2 - WIDTHS[0] ** 2)  # parameters
    row = next(r for r in plan(Cluster(more, world, group, "float32", bandwidth=1)) if r.mode == mode)
    slopes = [
        Figures(*(b - a for a, b in zip(*pair, strict=True))) for pair in zip(small, large, strict=True)
    ]
    for slope in slopes:
        assert slope.held == row.held
        assert slope.moved == row.update, "seconds at one byte a second"
        assert abs(slope.update) < SAME
    assert sum(slope.block for slope in slopes) == pytest.approx(world * row.block, rel=0.01, abs=SAME)
    assert sum(slope.file for slope in slopes[1:]) == pytest.approx(row.file, rel=0.01, abs=SAME)
    assert (tmp_path / "average.safetensors").stat().st_size > 4 * 4 * WIDTHS[1] ** 2, "it is whole"
