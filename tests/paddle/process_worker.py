"""One of two processes that train together: ``python -m tests.paddle.process_worker KIND FOLDER``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import paddle
from paddle import nn
from paddle.distributed import fleet
from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_optimizer_stage2
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage2 import GroupShardedStage2
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_storage import ParamStorage

from polyak.errors import PlanError, SwapError
from polyak.paddle import EMA, ExponentialMovingAverage

STEPS = 5


def network() -> nn.Layer:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))


def begin(kind: str) -> tuple[nn.Layer, paddle.optimizer.Optimizer]:
    """A layer wrapped for training in two processes; rank 0's parameters are everyone's."""
    if kind == "DataParallel":
        paddle.distributed.init_parallel_env()
        paddle.seed(paddle.distributed.get_rank())
        layer = network()
        wrapped = paddle.DataParallel(layer)
        return wrapped, paddle.optimizer.AdamW(0.05, parameters=layer.parameters())
    if kind == "group_sharded":
        paddle.distributed.init_parallel_env()
        paddle.seed(paddle.distributed.get_rank())
        layer = network()
        return group_sharded(layer, paddle.optimizer.AdamW(0.05, parameters=layer.parameters()))
    strategy = fleet.DistributedStrategy()
    degrees = {"dp_degree": 1, "sharding_degree": 2} if kind == "fleet, sharding" else {"dp_degree": 2}
    strategy.hybrid_configs = degrees
    fleet.init(is_collective=True, strategy=strategy)
    paddle.seed(0)  # fleet draws them alike in each process
    layer = network()
    optimizer = fleet.distributed_optimizer(paddle.optimizer.AdamW(0.05, parameters=layer.parameters()))
    return fleet.distributed_model(layer), optimizer


@contextmanager
def as_on_a_gpu() -> Generator[None]:
    """Sharding by group on a CPU, which Paddle's assertions refuse.

    One step must not be taken there: a parameter is copied to the host and then cleared, but here it is the
    same memory.
    """
    add = ParamStorage.add_rank_params
    in_place = lambda self, params, align: add(self, params, align, convert_gpu=False)  # noqa: E731
    with (
        patch.object(ParamStorage, "add_rank_params", in_place),
        patch.object(group_sharded_optimizer_stage2.core, "is_compiled_with_cuda", lambda: True),
        patch.object(paddle, "get_device", lambda: "cpu:0"),
    ):
        yield


def group_sharded(
    layer: nn.Layer, optimizer: paddle.optimizer.Optimizer
) -> tuple[nn.Layer, paddle.optimizer.Optimizer]:
    """What ``group_sharded_parallel`` makes for ``level="os"`` and ``"os_g"``, which are one."""
    with as_on_a_gpu():
        sharded = group_sharded_optimizer_stage2.GroupShardedOptimizerStage2(
            optimizer._parameter_list, optimizer, device="cpu"
        )
        return GroupShardedStage2(layer, sharded, device="cpu"), sharded


def refusals() -> list[str]:
    """What is said of a layer that stage 3 has cut, wrapped and not, and of a tensor-parallel one."""
    layer = network()
    optimizer = paddle.optimizer.AdamW(parameters=layer.parameters())
    with as_on_a_gpu():
        cut = GroupShardedStage3(layer, optimizer, device="cpu", segment_size=4)
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"mp_degree": 2}
    fleet.init(is_collective=True, strategy=strategy)
    answers: list[str] = []
    for refused in (cut, layer, fleet.meta_parallel.ColumnParallelLinear(4, 6, has_bias=True)):
        try:
            EMA(refused, 0.5)
        except PlanError as error:
            answers.append(str(error))
    return answers


def train(kind: str, folder: Path) -> None:
    layer, optimizer = begin(kind)
    rank = paddle.distributed.get_rank()
    ema = EMA(layer, {"short": 0.5, "long": 0.9})
    listed = ExponentialMovingAverage(layer, 0.5)
    ema.attach(optimizer)
    wrapped = layer._layer if kind == "group_sharded" else layer._layers
    inner = dict(wrapped.state_dict())
    expected = {name: tensor.numpy().astype("float64") for name, tensor in inner.items()}
    random = np.random.default_rng(rank)  # each has data of its own
    for step in range(STEPS):
        layer(paddle.to_tensor(random.normal(size=(6, 4)).astype("float32"))).square().sum().backward()
        with ema.average_parameters(), paddle.no_grad():
            layer(paddle.ones([2, 4]))  # an evaluation between a backward and its step
        optimizer.step()
        optimizer.clear_grad()
        listed.step()
        assert ema.step == step + 1
        expected = {n: 0.5 * v + 0.5 * inner[n].numpy().astype("float64") for n, v in expected.items()}
    for name, average in ema.tracks["short"].tensors.items():
        np.testing.assert_allclose(average.numpy(), expected[name], rtol=1e-6, atol=1e-6)
    with ema.average_parameters("short"), paddle.no_grad():
        np.testing.assert_array_equal(
            layer(paddle.ones([2, 4])).numpy(), ema.module_of("short")(paddle.ones([2, 4])).numpy()
        )
    for name, one in (("", ema), ("listed", listed.ema)):
        held = one.module.state_dict()
        np.savez(folder / f"{name}{rank}.npz", **{key: tensor.numpy() for key, tensor in held.items()})
    synchronize(rank, folder)
    ema.verify()
    compare(rank, folder)
    if kind == "group_sharded":
        (folder / f"refusals{rank}.json").write_text(json.dumps(refusals()))
    if rank == 0:
        ema.save(folder / "average.safetensors", track="short")
        ema.save(folder / "state.safetensors", resumable=True)


def synchronize(rank: int, folder: Path) -> None:
    """Statistics that differ between the processes, before and after the call that makes them equal."""
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1D(2))
    layer.register_buffer("table", paddle.zeros([2]))
    ema = EMA(layer, 0.5)
    for tensor in (layer[1]._mean, layer[1]._variance, layer.table):
        tensor.set_value(paddle.full([2], 1.0 + 2 * rank))
    ema.update()
    weight = ema.module[0].weight.numpy()
    for name in ("before", "after"):
        held = ema.module.state_dict()
        np.savez(folder / f"{name}{rank}.npz", **{key: tensor.numpy() for key, tensor in held.items()})
        ema.synchronize_buffers()
    assert layer.table.tolist() == [1.0 + 2 * rank] * 2
    np.testing.assert_array_equal(ema.module[0].weight.numpy(), weight)


def compare(rank: int, folder: Path) -> None:
    """What ``verify`` says where the processes differ, one line each."""
    layer = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1D(2))
    layer[0].weight.set_value(paddle.ones([2, 2]))
    layer[1]._mean.set_value(paddle.full([2], rank))
    ema = EMA(layer, 0.5)
    ema.update()
    ema.verify()  # statistics may differ
    with (folder / f"verify{rank}.txt").open("w") as found:

        def note() -> None:
            try:
                ema.verify()
            except (PlanError, SwapError) as error:
                found.write(f"{type(error).__name__} {error}\n")

        if rank == 0:
            ema.update()
        note()
        if rank == 1:
            ema.update()
        ema.tracks["average"].tensors["0.weight"].fill_(rank)
        note()
        with ema.average_parameters() if rank == 0 else nullcontext():
            note()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"paddle\..*")
    train(sys.argv[1], Path(sys.argv[2]))
