"""A rank averages its own elements, alone, and rounds each as any other layout would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import polyak
from polyak.torch._engines import updater
from polyak.torch._sharding.layout import cut, piece_of
from tests.distributed import models
from tests.distributed.ranks import Ranks
from tests.torch.engines.test_async_update import LateWorker
from tests.work import lines_run


def layers() -> nn.Sequential:
    """Rows and columns that share blocks of random bits between ranks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 90), nn.Linear(90, 50))


def written(model: nn.Module, step: int) -> None:
    """θ of a step, the same whatever the layout."""
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            random = torch.Generator().manual_seed(100 * step + place)
            new = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
            if isinstance(parameter, DTensor):  # distribute_tensor knows no strided shards
                piece = piece_of(parameter, "")
                piece.tensor.copy_(cut(piece, new))
                assert torch.equal(parameter.full_tensor(), new)
            else:
                parameter.copy_(new)


LAYOUTS = ("whole", "shard=", "fully_shard", "columns", "both")


def rounded(rank: int, layout: str, dtype: Any, engine: str) -> dict[str, Tensor]:
    model: Any = layers()
    world, options = dist.get_world_size(), {}
    if layout == "shard=":
        options = {"shard": dist.group.WORLD}
    elif layout == "fully_shard":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    elif layout == "columns":
        plan: Any = {"0": RowwiseParallel(), "1": ColwiseParallel()}
        parallelize_module(model, init_device_mesh("cpu", (world,)), plan)
    elif layout == "both":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
        parallelize_module(model, mesh["tp"], plan)
        fully_shard(model, mesh=mesh["dp"])
    ema: Any = polyak.EMA(model, {"a": 0.9, "b": 0.99}, dtype=dtype, engine=engine, **options)
    for step in range(5):
        written(model, step)
        ema.update()
    out = {f"a/{name}": tensor for name, tensor in models.average(ema, "a").items()}
    return out | {f"b/{name}": tensor for name, tensor in models.average(ema, "b").items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "split"], ids=str)
@pytest.mark.parametrize("engine", ["auto", "foreach"])
def test_16_bit_averages_are_the_same_bits_on_any_layout(dtype: Any, engine: str, four: Ranks) -> None:
    (want,) = four.run(1, rounded, "whole", dtype, engine)
    cases = [
        ("shard=", 2),
        ("shard=", 3),
        ("fully_shard", 3),
        ("fully_shard", 4),
        ("columns", 2),
        ("both", 4),
    ]
    for layout, world in cases:
        for found in four.run(world, rounded, layout, dtype, engine):
            for name, tensor in want.items():
                assert torch.equal(found[name], tensor), (layout, world, name)


def elements(rank: int) -> tuple[int, int]:
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 128))
    ema = polyak.EMA(net, shard=dist.group.WORLD)
    averaged = sum(tensor.numel() for tensor in ema.tracks["average"].tensors.values())
    return averaged, sum(parameter.numel() for parameter in net.parameters())


def test_a_rank_averages_its_share(four: Ranks) -> None:
    for world in (2, 3, 4):
        for averaged, whole in four.run(world, elements):
            assert averaged <= whole * (1 / world + 0.15)


def alone(rank: int, mode: str) -> float | None:
    """Rank 0 does what must not wait for the others, while they do nothing."""
    sharded = models.MODES[mode]()
    ema = polyak.EMA(sharded.model, 0.5, **sharded.ema)
    optimizer = torch.optim.SGD(sharded.model.parameters(), lr=0.1, foreach=False)
    models.train(sharded, optimizer, 0, rank)
    if rank:
        return None
    ema.update()
    ema.attach(optimizer).remove()
    ema.state_dict()
    repr(ema), str(ema)
    return float(ema.metrics()["distance"])


@pytest.mark.parametrize("mode", ["ddp", "shard=", "fully_shard", "hybrid", "tensor parallel"])
def test_updating_and_looking_speak_to_nobody(mode: str, four: Ranks) -> None:
    world = 4 if mode == "hybrid" else 2
    assert four.run(world, alone, mode, timeout=5)[0] > 0


def looks(rank: int, sharded: bool, layers: int) -> int:
    """Lines of polyak that one update runs."""
    net: Any = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
    if sharded:
        fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    ema = polyak.EMA(net, 0.9)
    for _ in range(3):
        ema.update()
    return lines_run(ema.update)


def test_an_update_of_a_sharded_model_does_no_work_for_each_tensor_in_python(four: Ranks) -> None:
    few, many = (four.run(2, looks, True, layers)[0] for layers in (2, 40))
    assert few == many
    assert many <= four.run(2, looks, False, 40)[0] + 5


def notices(rank: int) -> None:
    """A piece that was replaced, a dtype that changed, whole parameters left by a forward pass."""
    net: Any = layers()
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    ema = polyak.EMA(net, 0.5)
    before = models.theta(net)
    with torch.no_grad():
        net(torch.ones(2, 70))  # leaves whole parameters in the modules
    written(net, 1)
    ema.update()
    found, now = models.average(ema), models.theta(net)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), (before[name] + now[name]) / 2, atol=1e-6, rtol=0)
    weight = net[0].weight
    weight._local_tensor = weight._local_tensor.detach().clone()
    written(net, 2)
    ema.update()
    for name, tensor in models.average(ema).items():
        want = (found[name].double() + models.theta(net)[name]) / 2
        torch.testing.assert_close(tensor.double(), want, atol=1e-6, rtol=0)


def test_a_replaced_piece_and_whole_parameters_left_behind_are_noticed(four: Ranks) -> None:
    four.run(2, notices)


def a_group_of_its_own(rank: int) -> bool:
    group = dist.new_group([0, 2])
    net = layers()
    if rank == 1:
        return True
    ema = polyak.EMA(net, 0.5, shard=group)
    written(net, 1)
    ema.update()
    inside = layers()
    for mine, other in zip(inside.parameters(), net.parameters(), strict=True):
        mine.data.lerp_(other.data, 0.5)
    with ema.average_parameters():
        return all(
            torch.allclose(a, b, atol=1e-6)
            for a, b in zip(inside.parameters(), net.parameters(), strict=True)
        )


def test_some_of_the_ranks_can_divide_an_average(four: Ranks) -> None:
    assert four.run(3, a_group_of_its_own) == [True] * 3


def a_stage(rank: int, folder: Path) -> list[str]:
    """Half of a model on each pair of ranks, under its names in the whole, saved by them alone."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "dp"))
    net: Any = layers()
    mine = rank // 2
    stage: Any = nn.Module()
    stage.add_module(str(mine), net[mine])
    fully_shard(stage, mesh=mesh["dp"])
    ema = polyak.EMA(stage, 0.5)
    written(stage, 1)
    ema.update()
    ema.verify()
    ema.save(folder / f"stage{mine}.safetensors" if rank % 2 == 0 else None)
    whole = models.average(ema)
    dist.barrier()
    saved = polyak.load(folder / f"stage{mine}.safetensors").tensors
    assert all(torch.equal(torch.as_tensor(saved[name]), tensor) for name, tensor in whole.items())
    return sorted(saved)


def test_a_pipeline_stage_averages_its_part_and_has_a_file_of_its_own(four: Ranks, tmp_path: Path) -> None:
    names = four.run(4, a_stage, tmp_path)
    assert names == [["0.bias", "0.weight"]] * 2 + [["1.bias", "1.weight"]] * 2


def placed(rank: int) -> None:
    net = nn.Linear(6, 4)
    mesh = init_device_mesh("cpu", (2,))
    net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Shard(1)]))
    net.bias = nn.Parameter(distribute_tensor(net.bias.detach(), mesh, [Replicate()]))
    ema = polyak.EMA(net, 0.5)
    assert ema.tracks["average"].tensors["weight"].shape == (4, 3)
    assert ema.tracks["average"].tensors["bias"].shape == (4,)
    partial = DTensor.from_local(torch.ones(4), mesh, [Partial()], run_check=False)
    net.bias = nn.Parameter(partial)
    with pytest.raises(polyak.PlanError, match=r"bias is a DTensor placed as .*sum over processes"):
        polyak.EMA(net, 0.5)


def test_placements_decide_what_is_here(four: Ranks) -> None:
    four.run(2, placed)


def offloaded(rank: int, mode: str, folder: Path) -> None:
    """Pieces averaged late by a thread, as ``device="cpu"`` averages them beside a GPU; saved meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updater, "placement", lambda pair, overlap: "offload")
        patch.setattr(updater, "worker_of", lambda device: LateWorker())
        sharded = models.MODES[mode]()
        ema = polyak.EMA(sharded.model, 0.5, device="cpu", buffers="copy", **sharded.ema)
        assert "offload" in ema.metrics()["engine"]
        optimizer = torch.optim.SGD(sharded.model.parameters(), lr=0.5, foreach=False)
        ema.attach(optimizer)
        expected = models.theta(sharded.model)
        for step in range(4):
            models.train(sharded, optimizer, step, rank)  # its update is under way, and late
            now = models.theta(sharded.model)
            for name, value in expected.items():
                value.lerp_(now[name], 0.5)
            ema.save(folder / f"{step}.safetensors")
            dist.barrier()
            saved = polyak.load(folder / f"{step}.safetensors").tensors
            for name in models.average(ema):
                torch.testing.assert_close(
                    torch.as_tensor(saved[name]).double(), expected[name], atol=1e-6, rtol=0
                )


@pytest.mark.parametrize("mode", ["shard=", "fully_shard"])
def test_pieces_are_averaged_beside_the_training_and_saved_between_updates(
    mode: str, four: Ranks, tmp_path: Path
) -> None:
    four.run(2, offloaded, mode, tmp_path)
