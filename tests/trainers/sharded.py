"""Gives models that FSDP has sharded, over the one process there is, to each trainer; prints its answers."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import polyak


def pieces(model: Any, version: int) -> Any:
    if version == 1:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def to_hugging_face(version: int, folder: Path) -> None:
    from tests.trainers import test_transformers as hf

    run = hf.trainer(folder, model=pieces(hf.bert(), version))
    hf.WeightAveraging().attach(run)
    run.train()


def answers(version: int, folder: Path) -> dict[str, str]:
    from polyak.trainers.accelerate import Accelerator, weight_averaging
    from polyak.trainers.ignite import WeightAveraging

    model = pieces(nn.Linear(4, 2), version)
    optimizer = torch.optim.SGD(model.parameters())
    given: dict[str, Callable[[], object]] = {
        "plain": lambda: polyak.EMA(model),
        "ignite": lambda: WeightAveraging(model=model, optimizer=optimizer),
        "accelerate": lambda: weight_averaging(Accelerator(cpu=True), model, optimizer),
        "transformers": lambda: to_hugging_face(version, folder),
    }
    found: dict[str, str] = {}
    for trainer, give in given.items():
        try:
            give()
        except polyak.PlanError as error:
            found[trainer] = str(error)
    return found


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print(json.dumps(answers(int(sys.argv[1]), Path(sys.argv[2]))))
    dist.destroy_process_group()
