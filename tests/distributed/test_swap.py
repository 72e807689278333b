"""In a block every forward pass computes with the average; then the raw weights are back, bit for bit."""

from __future__ import annotations

from types import FrameType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

import polyak
from polyak import PlanError, SwapError
from tests.distributed import models
from tests.distributed.models import Net, Sharded
from tests.distributed.ranks import Ranks
from tests.distributed.test_updates import WORLDS
from tests.interrupts import interrupted


def trained(mode: str, rank: int, steps: int = 3, **options: Any) -> tuple[Sharded, polyak.EMA[Any], Any]:
    sharded = models.MODES[mode]()
    ema = polyak.EMA(sharded.model, 0.5, **sharded.ema, **options)
    optimizer = torch.optim.AdamW(sharded.model.parameters(), lr=0.1, foreach=False)
    ema.attach(optimizer)
    for step in range(steps):
        models.train(sharded, optimizer, step, rank)
    return sharded, ema, optimizer


def reference(ema: polyak.EMA[Any], dtype: torch.dtype) -> Net:
    """One whole model with the average."""
    net = Net().to(dtype)
    averages = models.average(ema)
    for name, tensor in net.state_dict().items():
        if name in averages:
            tensor.copy_(averages[name])
    if "again.weight" not in averages:
        net.again.weight = net.inner.weight
    return net.eval()


def bits(model: nn.Module) -> list[Tensor]:
    """Of every local part."""
    return [getattr(t, "_local_tensor", t).detach().clone() for t in model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def shows_the_average(rank: int, mode: str) -> None:
    sharded, ema, optimizer = trained(mode, rank)
    model = sharded.model
    x = models.batch(99, 0, model)
    want = reference(ema, x.dtype)(x)
    held = [id(parameter) for parameter in model.parameters()]
    model.eval()
    with torch.no_grad():
        raw = model(x)  # fully_shard leaves whole parameters after it
        before = bits_after_reshard(model)
        with ema.average_parameters() as live:
            assert live is model
            shown = model(x)
            with ema.average_parameters():
                again = model(x)
            third = model(x)
        back = model(x)  # not with whole parameters of the block
        assert equal(bits_after_reshard(model), before)
    assert torch.equal(raw, back)
    assert torch.equal(shown, again)
    assert torch.equal(shown, third)
    assert not torch.allclose(shown, raw, atol=1e-2)
    low = x.dtype == torch.bfloat16 or "mixed" in mode or mode == "bfloat16"
    torch.testing.assert_close(shown.float(), want.float(), atol=0.05 if low else 1e-5, rtol=0)
    reshard(model)
    assert [id(parameter) for parameter in model.parameters()] == held
    model.train()
    step = bits(model)
    models.train(sharded, optimizer, 10, rank)
    assert not equal(bits_after_reshard(model), step)  # the optimizer still reaches them
    assert ema.step == 4


def reshard(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def bits_after_reshard(model: nn.Module) -> list[Tensor]:
    reshard(model)
    return bits(model)


@pytest.mark.parametrize("mode", models.MODES)
def test_a_block_shows_the_average_and_gives_the_raw_weights_back(mode: str, four: Ranks) -> None:
    four.run(WORLDS.get(mode, (2, 3))[-1], shows_the_average, mode)


def trains_alike(rank: int, mode: str) -> None:
    def run(blocks: bool) -> list[Tensor]:
        torch.manual_seed(0)
        sharded, ema, optimizer = trained(mode, rank, 0)
        for step in range(4):
            models.train(sharded, optimizer, step, rank)
            if blocks:
                inner = getattr(sharded.model, "module", sharded.model)  # DDP's would send rank 0's buffers
                inner.eval()
                with ema.average_parameters(), torch.no_grad():
                    inner(models.batch(50, 0, sharded.model))
                inner.train()
        return [*bits_after_reshard(sharded.model), *ema.tracks["average"].tensors.values()]

    assert equal(run(True), run(False))


@pytest.mark.parametrize(
    "mode", ["shard=", "fully_shard", "not resharded", "fully_shard and tensor parallel"]
)
def test_training_with_blocks_is_training_without(mode: str, four: Ranks) -> None:
    four.run(WORLDS.get(mode, (2,))[-1], trains_alike, mode)


def raises_in_a_block(rank: int, mode: str) -> None:
    sharded, ema, _ = trained(mode, rank)
    before = bits_after_reshard(sharded.model)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), ema.average_parameters():
            raise error
        assert equal(bits_after_reshard(sharded.model), before)
        assert ema.live == "raw"
    with pytest.raises(SwapError, match="something wrote to"), ema.average_parameters(), torch.no_grad():
        getattr(sharded.model, "module", sharded.model).inner.weight.add_(1.0)
    assert equal(bits_after_reshard(sharded.model), before)


@pytest.mark.parametrize("mode", ["shard=", "shard= bfloat16", "fully_shard", "bfloat16"])
def test_an_exception_gives_the_raw_weights_back_and_a_write_is_told(mode: str, four: Ranks) -> None:
    four.run(2, raises_in_a_block, mode)


EXCHANGING = ("swap_in", "swap_out", "show", "restore", "send", "_view", "_scratch_for")


def exchanging(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name in EXCHANGING and code.co_filename.endswith("_sharding/swap.py")


def interrupts(rank: int, mode: str, who: int, first: int, stride: int) -> int:
    """Interrupt a block of rank ``who`` at every so many lines; how often."""
    sharded, ema, _ = trained(mode, rank)
    reshard(sharded.model)
    raw, averages = bits(sharded.model), [t.clone() for t in ema.tracks["average"].tensors.values()]

    def block() -> None:
        with ema.average_parameters():
            pass

    at, hits = first, 0
    while True:
        hit = interrupted(block, at, exchanging) if rank == who else False
        if rank != who:
            block()
        assert ema.live == "raw"
        assert equal(bits(sharded.model), raw), at
        assert equal(list(ema.tracks["average"].tensors.values()), averages), at
        going = torch.tensor(int(hit))
        dist.broadcast(going, who)
        if not going:
            return hits
        at, hits = at + stride, hits + 1


@pytest.mark.parametrize("mode", ["fully_shard", "bfloat16", "shard=", "shard= bfloat16"])
def test_an_interrupt_at_any_line_of_an_exchange_gives_the_raw_weights_back(mode: str, four: Ranks) -> None:
    for who in (0, 1):
        hits = four.run(2, interrupts, mode, who, 1 + 2 * who, 5)
        assert min(hits) > 5


def module_or_refusal(rank: int, mode: str) -> str | None:
    sharded, ema, _ = trained(mode, rank)
    try:
        module = ema.module
    except PlanError as error:
        return str(error)
    x = models.batch(99, 0, sharded.model)
    torch.testing.assert_close(module(x), reference(ema, x.dtype)(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(ema(x), reference(ema, x.dtype)(x), atol=1e-5, rtol=0)
    return None


def test_a_module_of_the_average_needs_all_of_it_or_tensor_parallelism(four: Ranks) -> None:
    assert four.run(2, module_or_refusal, "tensor parallel") == [None, None]
    for mode, how in (("fully_shard", "fully_shard"), ("shard=", "shard=")):
        for refusal in four.run(2, module_or_refusal, mode):
            assert refusal is not None
            assert refusal.startswith(f"ema.module: under {how} this process holds a part")
            assert "average_parameters()" in refusal


def copies(rank: int, mode: str) -> None:
    sharded, ema, _ = trained(mode, rank)
    want = models.average(ema)
    alike = models.MODES[mode]().model
    for other in (alike, models.seeded(), models.fully().model):
        ema.copy_to(other)
        for name, tensor in models.theta(other).items():
            if name in want:
                assert torch.equal(tensor, want[name].double()), (mode, name)
    assert int(getattr(alike, "module", alike).count) == 3
    with pytest.raises(PlanError, match="copy_to needs a model of the same structure"):
        ema.copy_to(nn.Linear(2, 2))
    ema.copy_to()
    assert all(
        torch.equal(models.theta(sharded.model)[name], want[name].double()) for name in want if "." in name
    )


@pytest.mark.parametrize("mode", ["ddp", "shard=", "fully_shard", "hybrid", "tensor parallel"])
def test_copies_go_to_models_sharded_alike_or_otherwise(mode: str, four: Ranks) -> None:
    four.run(WORLDS.get(mode, (2, 3))[-1], copies, mode)


def memory(rank: int) -> tuple[int, int]:
    """Bytes allocated by a block beyond the scratch of one part, and those of the shard."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not any(
                isinstance(a, Tensor) and a.untyped_storage()._cdata == out.untyped_storage()._cdata
                for a in args
            ):
                self.total += out.nbytes
            return out

    net: Any = nn.Sequential(nn.Linear(512, 1024), nn.Linear(1024, 512))
    torch.distributed.fsdp.fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    ema = polyak.EMA(net, 0.9)
    shard = sum(t.to_local().nbytes for t in net.parameters())
    with Largest() as seen, ema.average_parameters():
        pass
    return seen.total, shard


def test_a_block_takes_no_second_copy_of_the_shard(four: Ranks) -> None:
    for taken, shard in four.run(2, memory):
        assert taken < 0.6 * shard  # the scratch is as large as the largest tensor here


def refuses(rank: int) -> None:
    with pytest.raises(polyak.ConfigError, match=r"shard=.*must be a process group"):
        polyak.EMA(models.seeded(), shard=5)
    with pytest.raises(polyak.ConfigError, match=r"sharded already"):
        polyak.EMA(models.fully().model, shard=dist.group.WORLD)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))
    with pytest.raises(polyak.ConfigError, match="of one dimension"):
        polyak.EMA(models.seeded(), shard=mesh)
    ema = polyak.EMA(models.seeded(), shard=mesh["a"])
    held = sum(t.numel() for name, t in ema.tracks["average"].tensors.items() if "running" not in name)
    total = sum(p.numel() for p in models.seeded().parameters() if p.requires_grad)
    assert held < total
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "2.5.1")
        with pytest.raises(
            PlanError, match=r"shard=: averages are sharded from torch 2.6 on, and this is 2.5.1"
        ):
            polyak.EMA(models.seeded(), shard=dist.group.WORLD)
        with pytest.raises(PlanError, match=r"is a DTensor: averages are sharded from"):
            polyak.EMA(models.fully().model)
    partitioned = models.seeded()
    partitioned.inner.weight.ds_id = 3
    with pytest.raises(PlanError, match=r"inner.weight .*ZeRO-3 .*fully_shard"):
        polyak.EMA(partitioned)


def test_what_cannot_be_divided_is_refused_by_name(four: Ranks) -> None:
    four.run(2, refuses)
