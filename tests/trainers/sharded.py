"""Gives a model that FSDP's first version has cut to each trainer, in one process; prints their answers."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import polyak


def pieces(model: Any) -> Any:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def to_hugging_face(folder: Path) -> None:
    from tests.trainers import test_transformers as hf

    run = hf.trainer(folder, model=pieces(hf.bert()))
    hf.WeightAveraging().attach(run)
    run.train()


def answers(folder: Path) -> dict[str, str]:
    from polyak.trainers.accelerate import Accelerator, weight_averaging
    from polyak.trainers.ignite import WeightAveraging

    model = pieces(nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters())
    given: dict[str, Callable[[], object]] = {
        "plain": lambda: polyak.EMA(model),
        "ignite": lambda: WeightAveraging(model=model, optimizer=optimizer),
        "accelerate": lambda: weight_averaging(Accelerator(cpu=True), model, optimizer),
        "transformers": lambda: to_hugging_face(folder),
    }
    found: dict[str, str] = {}
    for trainer, give in given.items():
        try:
            give()
        except polyak.PlanError as error:
            found[trainer] = str(error)
    try:
        model = nn.Linear(4, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        WeightAveraging(model=model, optimizer=torch.optim.SGD(model.parameters()))
    except polyak.ConfigError as error:
        found["ignite, fully_shard"] = str(error)
    return found


def main(folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print(json.dumps(answers(folder)))
    dist.destroy_process_group()
