"""Files of sharded averages: what one process would write, in bounded memory, whole or not at all."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import polyak
from polyak._files.checkpoint import FileTensor
from polyak.errors import ConfigError, PolyakError
from polyak.torch._sharding.stream import Stream
from tests.distributed import models
from tests.distributed.ranks import TIMEOUT, Ranks, ranks

DECAYS: dict[str, Any] = {"short": 0.7, "long": polyak.ByName({"inner.*": 0.9, "*": 0.8})}
MODES = ("shard=", "fully_shard", "bfloat16", "hybrid", "tensor parallel", "fully_shard and tensor parallel")


def world_of(mode: str) -> int:
    return {"hybrid": 4, "fully_shard and tensor parallel": 4, "tensor parallel": 2}.get(mode, 3)


def trained(rank: int, mode: str, **options: Any) -> polyak.EMA:
    sharded = models.MODES[mode]()
    ema = polyak.EMA(sharded.model, DECAYS, **sharded.ema, **options)
    optimizer = torch.optim.AdamW(sharded.model.parameters(), lr=1e-2, foreach=False)
    for step in range(3):
        models.train(sharded, optimizer, step, rank)
        ema.update()
    return ema


def plain(ema: polyak.EMA, mode: str) -> polyak.EMA:
    """An EMA of a whole model with this rank's buffers, on every rank."""
    net = models.seeded().to(next(ema.model.parameters()).dtype)
    inner = getattr(ema.model, "module", ema.model)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(models.whole(inner.get_parameter(name)))
        for name, buffer in net.named_buffers():
            buffer.copy_(inner.get_buffer(name))
    return polyak.EMA(net, DECAYS)


def save_and_compare(rank: int, mode: str, folder: Path) -> None:
    ema = trained(rank, mode)
    single, gathered = plain(ema, mode), {name: models.average(ema, name) for name in DECAYS}

    def mine(name: str) -> Path | None:
        return folder / name if rank == 0 else None

    ema.save(mine("long.safetensors"), "long")
    ema.save(mine("raw.safetensors"), "raw")
    ema.save(mine("all.safetensors"), resumable=True)
    ema.save(mine("shards.safetensors"), "long", max_shard_size=300)
    saving = ema.save(mine("behind.safetensors"), "long", background=True)
    ema.update()  # the copies were made before
    saving.wait()
    if rank:
        return
    assert not single.load(folder / "all.safetensors")
    for name, tensors in gathered.items():
        for key, tensor in tensors.items():
            assert torch.equal(single.tracks[name].tensors[key], tensor), key
    single.save(folder / "expected.safetensors", "long")
    assert (folder / "long.safetensors").read_bytes() == (folder / "expected.safetensors").read_bytes()
    assert (folder / "behind.safetensors").read_bytes() == (folder / "expected.safetensors").read_bytes()
    single.save(folder / "expected.safetensors", "raw")
    assert (folder / "raw.safetensors").read_bytes() == (folder / "expected.safetensors").read_bytes()
    single.save(folder / "expected.safetensors", resumable=True)
    assert (folder / "all.safetensors").read_bytes() == (folder / "expected.safetensors").read_bytes()
    shards, whole = polyak.load(folder / "shards.safetensors"), polyak.load(folder / "long.safetensors")
    assert all((shards.tensors[name] == array).all() for name, array in whole.tensors.items())
    assert len(list(folder.glob("shards-*"))) > 2


@pytest.mark.parametrize("mode", MODES)
def test_rank_0_writes_byte_for_byte_what_one_process_would(mode: str, four: Ranks, tmp_path: Path) -> None:
    four.run(world_of(mode), save_and_compare, mode, tmp_path)


def resume(rank: int, mode: str, path: Path) -> tuple[int, int]:
    """Load into a fresh EMA of the same layout; the elements read, and those this rank holds."""
    ema = trained(rank, mode)
    ema.save(path, resumable=True)
    fresh = polyak.EMA(ema.model, DECAYS, **({"shard": torch.distributed.group.WORLD} if "=" in mode else {}))
    read: list[int] = []
    original = FileTensor.read_into

    def counted(self: FileTensor, start: int, buffer: Any) -> None:
        read.append(len(buffer))
        original(self, start, buffer)

    FileTensor.read_into = counted
    try:
        assert not fresh.load(path)
    finally:
        FileTensor.read_into = original
    assert (fresh.step, fresh.run) == (3, ema.run)
    held = 0
    for name, track in fresh.tracks.items():
        for key, tensor in track.tensors.items():
            expected = ema.tracks[name].tensors[key].clone()
            if key == "running_mean":  # the file has rank 0's
                torch.distributed.broadcast(expected, 0)
            assert torch.equal(tensor, expected), key
            held += tensor.numel()
    return sum(read), held


@pytest.mark.parametrize("mode", ["shard=", "fully_shard", "fully_shard and tensor parallel"])
def test_each_rank_reads_its_own_part_of_a_resumable_file(mode: str, four: Ranks, tmp_path: Path) -> None:
    for read, held in four.run(world_of(mode), resume, mode, tmp_path / "all.safetensors"):
        assert held <= read <= held + 2 * 4  # and a copied buffer


def peak() -> int:
    """The largest resident memory since the last reset, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return 1024 * int(line.split()[1])


class Large(nn.Module):
    """128 MiB, of which one tensor has 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(4096, 4096, bias=False)
        self.one, self.other = (nn.Linear(2048, 4096, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x)


def memory_of_a_save(rank: int, folder: Path) -> float:
    model = Large()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    ema = polyak.EMA(model, 0.9)
    path = folder / "large.safetensors" if rank == 0 else None
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    ema.save(path)
    return (peak() - before) / 2**20


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is reset on Linux")
def test_a_save_takes_less_than_56_mib_more_on_any_rank(four: Ranks, tmp_path: Path) -> None:
    assert max(four.run(2, memory_of_a_save, tmp_path)) < 56
    assert (tmp_path / "large.safetensors").stat().st_size > 2**27


def caught(act: Callable[[], object]) -> str:
    try:
        act()
    except PolyakError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fail_and_go_on(rank: int, folder: Path) -> list[str]:
    """What saves raise: rank 0 cannot write, nor under that name; rank 1 is swapped, then a step ahead."""
    ema = trained(rank, "fully_shard")
    good, missing = folder / "good.safetensors", folder / "missing" / "file.safetensors"
    texts = [caught(lambda: ema.save(missing if rank == 0 else None))]
    texts.append(caught(lambda: ema.save(folder / "file.pt" if rank == 0 else None)))
    with ema.average_parameters() if rank == 1 else nullcontext():
        texts.append(caught(lambda: ema.save(good)))
    if rank == 1:
        ema.update()
    texts.append(caught(lambda: ema.save(good)))
    assert not good.exists()
    if rank != 1:
        ema.update()
    texts.append(caught(lambda: ema.save(good)))
    return texts


def test_an_error_of_one_rank_is_raised_by_all_at_once_and_the_next_save_works(
    four: Ranks, tmp_path: Path
) -> None:
    begun = time.monotonic()
    for rank, texts in enumerate(four.run(3, fail_and_go_on, tmp_path)):
        unwritable, ending, live, behind, good = texts
        assert unwritable.startswith("CheckpointError: ")
        assert "missing/file.safetensors cannot be written" in unwritable
        assert ending.startswith("ConfigError: ")
        assert "polyak writes safetensors" in ending
        assert live.startswith(f"SwapError: {'' if rank == 1 else 'rank 1: '}save: the model holds")
        assert behind.startswith("CheckpointError: rank 1 has seen 4 steps, the others 3. ")
        assert good == "no error"
    assert time.monotonic() - begun < TIMEOUT  # no rank waited for another one
    assert [path.name for path in tmp_path.iterdir()] == ["good.safetensors"]


def save_while_one_dies(rank: int, folder: Path, dies: int, when: str) -> None:
    """Save once, then again while a rank is killed: sending rows, or asked whether its own are unchanged."""
    ema = trained(rank, "fully_shard")
    ema.save(folder / "average.safetensors")
    if rank == 0:
        (folder / "before").write_bytes((folder / "average.safetensors").read_bytes())
    models.train(models.Sharded(ema.model, {}), torch.optim.SGD(ema.model.parameters(), 0.1), 9, rank)
    ema.update()
    if rank == dies:
        place = "_part" if when == "sending" else "_objection"
        setattr(Stream, place, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    text = caught(lambda: ema.save(folder / "average.safetensors"))
    (folder / f"error{rank}").write_text(text)


def save_while_the_first_dies(rank: int, folder: Path) -> None:
    """Rank 0 is killed when its new file is half written."""
    ema = trained(rank, "fully_shard")
    ema.save(folder / "average.safetensors")
    if rank == 0:
        (folder / "before").write_bytes((folder / "average.safetensors").read_bytes())
        setattr(Stream, "_fetch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))  # noqa: B010
    (folder / f"error{rank}").write_text(caught(lambda: ema.save(folder / "average.safetensors")))


def test_if_the_rank_that_writes_is_killed_the_others_name_it_and_tidy_up(tmp_path: Path) -> None:
    with ranks(2) as started, pytest.raises(AssertionError, match=r"^rank 0 died$"):
        started.run(2, save_while_the_first_dies, tmp_path)
    file, before, error = (tmp_path / name for name in ("average.safetensors", "before", "error1"))
    assert file.read_bytes() == before.read_bytes()
    assert error.read_text().startswith("CheckpointError: rank 0 was lost: ")
    assert set(tmp_path.iterdir()) == {file, before, error}


def test_a_rank_killed_while_saving_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    with ranks(4) as started:
        for dies, when in ((3, "sending"), (2, "confirming")):
            folder = tmp_path / when
            folder.mkdir()
            with pytest.raises(AssertionError, match=f"^rank {dies} died$"):
                started.run(dies + 1, save_while_one_dies, folder, dies, when)
            file, before = folder / "average.safetensors", folder / "before"
            assert file.read_bytes() == before.read_bytes()
            for rank in range(dies):
                text = (folder / f"error{rank}").read_text()
                named = "again.bias: " * (when == "sending")
                assert text.startswith(f"CheckpointError: {named}rank {dies} was lost: "), text
            errors = {f"error{rank}" for rank in range(dies)}
            assert {path.name for path in folder.iterdir()} == {file.name, before.name} | errors


def save_without_one(rank: int, folder: Path) -> tuple[str, float]:
    ema = trained(rank, "fully_shard")
    begun = time.monotonic()
    if rank == 1:
        time.sleep(6)
        return "", 0.0
    return caught(lambda: ema.save(folder / "average.safetensors")), time.monotonic() - begun


def test_a_rank_that_does_not_save_is_named_after_the_groups_timeout(four: Ranks, tmp_path: Path) -> None:
    (text, waited), _ = four.run(2, save_without_one, tmp_path, timeout=3)
    assert text.startswith("CheckpointError: rank 1 was lost: ")
    assert waited < 6
    assert list(tmp_path.iterdir()) == []


def test_only_ranks_that_write_nothing_need_no_path() -> None:
    with pytest.raises(ConfigError, match="path=None"):
        polyak.EMA(nn.Linear(2, 1), 0.9).save(None)
