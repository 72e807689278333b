"""A YOLO repository's loop under DDP and AMP, two processes: its ModelEMA becomes an import line."""

import os
import socket
import subprocess

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polyak.dropin.yolo import ModelEMA


def train(rank, world, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    images = images.float().view(-1, 1, 8, 8) / 16
    backbone = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
    model = DistributedDataParallel(nn.Sequential(backbone, nn.Flatten(), nn.Linear(512, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    ema = ModelEMA(model, decay=0.97)
    for _ in range(80):
        rows = torch.randint(1400, (64,))[rank::world]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        ema.update(model)

    def loss_held_out():
        with torch.no_grad():
            return nn.functional.cross_entropy(model.module(images[1400:]), labels[1400:]).item()

    model.eval()
    raw = loss_held_out()
    ema.apply_shadow(model)
    average = loss_held_out()
    if rank == 0:
        print(f"raw {raw:.3f}, average {average:.3f}")
        torch.save(model.module.state_dict(), "best.pt")
        torch.save({"model": model.module.state_dict(), "ema": ema.shadow}, "last.pt")
        assert average < raw
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    ema.restore(model)
    assert loss_held_out() == raw
    every = [torch.empty_like(weights) for _ in range(world)]
    dist.all_gather(every, weights)
    assert torch.equal(*every), "every process has the same average"
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(train, (2, port), nprocs=2)
    subprocess.run("polyak inspect best.pt", shell=True, check=True)
