"""Two real processes under DDP whose BatchNorm sees other data, and one call that makes averages equal."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from polyak import EMA, SwapError

STORES: dict[str, dict[str, Any]] = {"float32": {}, "split": {"dtype": "split"}}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.register_buffer("mask", torch.tensor([True, False]))
    net.register_buffer("table", torch.zeros(3))
    return net


def work(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for name in STORES:
        train(rank, name, out)
    dist.destroy_process_group()


def train(rank: int, name: str, out: str) -> None:
    net = nn.parallel.DistributedDataParallel(model(), broadcast_buffers=False)
    ema = EMA(net, {"a": 0.5, "b": 0.9}, **STORES[name])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ema.attach(optimizer)
    random = torch.Generator().manual_seed(rank)
    for step in range(4):
        optimizer.zero_grad()
        net.module.table.fill_(rank + step)
        net.module.mask.fill_(rank == 1)
        net(torch.randn(8, 3, generator=random)).square().mean().backward()
        optimizer.step()
    before = {t: {k: v.clone() for k, v in ema.module_of(t).state_dict().items()} for t in ("a", "b")}
    live = {k: v.clone() for k, v in net.module.state_dict().items()}
    ema.synchronize_buffers()
    assert all(torch.equal(v, live[k]) for k, v in net.module.state_dict().items())
    after = {t: dict(ema.module_of(t).state_dict()) for t in ("a", "b")}
    torch.save((before, after), f"{out}/{name}{rank}.pt")
    with ema.average_parameters(), pytest.raises(SwapError):
        ema.synchronize_buffers()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left their averages, before and after."""
    folder = tmp_path_factory.mktemp("averages")
    mp.spawn(work, args=(str(folder / "store"), str(folder)), nprocs=2)  # pyright: ignore
    return folder


@pytest.mark.parametrize("name", STORES)
def test_one_call_makes_the_averages_of_all_processes_equal(name: str, folder: Path) -> None:
    (one, a), (two, b) = (torch.load(folder / f"{name}{rank}.pt") for rank in (0, 1))
    for track in ("a", "b"):
        assert not torch.equal(one[track]["1.running_mean"], two[track]["1.running_mean"])
        for key, value in a[track].items():
            assert torch.equal(value, b[track][key]), key
            if "running" in key:
                mean = (one[track][key].double() + two[track][key].double()) / 2
                torch.testing.assert_close(
                    value.double(), mean, atol=1e-2 if name == "split" else 1e-6, rtol=0
                )
            else:
                assert torch.equal(value, one[track][key]), key


def test_one_process_has_nothing_to_make_equal() -> None:
    assert os.environ.get("RANK") is None
    ema = EMA(model(), 0.9)
    before = {name: t.clone() for name, t in ema.module.state_dict().items()}
    ema.synchronize_buffers()
    assert all(torch.equal(t, before[name]) for name, t in ema.module.state_dict().items())
