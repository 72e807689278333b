"""Writes a distributed checkpoint: one rank per process, as torchrun starts them.

python dcp_worker.py FOLDER RANK WORLD PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

TENSORS = {
    "rows": torch.arange(35.0).reshape(7, 5),  # uneven over two ranks
    "columns": torch.arange(24.0).reshape(4, 6).bfloat16(),
    "whole": torch.arange(6, dtype=torch.int64),
    "scalar": torch.tensor(2.5),
    "plain": torch.linspace(0, 1, 11).half(),
}


def save(folder: Path, rank: int, world: int, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
    }
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (world,))
    model = {
        "rows": distribute_tensor(TENSORS["rows"], mesh, [Shard(0)]),
        "columns": distribute_tensor(TENSORS["columns"], mesh, [Shard(1)]),
        "whole": distribute_tensor(TENSORS["whole"], mesh, [Replicate()]),
        "scalar": TENSORS["scalar"],
        "plain": TENSORS["plain"],
    }
    dcp.save({"model": model, "epoch": 3, "name": "x"}, checkpoint_id=str(folder))
    dist.destroy_process_group()


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    save(Path(folder), *map(int, numbers))
