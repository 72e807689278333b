"""The Triton engine against plain torch: in Triton's interpreter anywhere, and for real on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyak.errors import ConfigError
from polyak.torch._engines.base import Pair, arithmetic_dtype
from polyak.torch._engines.foreach import Foreach
from polyak.torch._engines.rounding import join

pytest.importorskip("triton", minversion="3.2")

from polyak.torch._engines import triton
from tests.torch.engines import triton_worker as worker

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CASES = [(live, store, which) for live in worker.LIVE for store in worker.STORES for which in (0, 1)]
CASES = [case for case in CASES if case[0] == torch.float32 or case[2] == 0]
Parts = tuple[list[Tensor], list[Tensor]]


def worked(module: str, task: Sequence[str], folder: Path) -> Any:
    """What a worker saved; Triton decides as it is imported whether it interprets."""
    file = folder / "results.pt"
    command = [sys.executable, "-m", f"tests.torch.engines.{module}", *task, str(file)]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(folder / "cache")} | ({"TRITON_INTERPRET": "1"} if "cpu" in task else {})
    subprocess.run(command, cwd=Path(__file__).parents[3], env=env, check=True, timeout=500)
    return torch.load(file, weights_only=False)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=gpu)])
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return worked("triton_worker", ("run", request.param), tmp_path_factory.mktemp("triton"))


def largest(pair: Pair, track: int) -> Tensor:
    """max(|avg|, |θ|), float64."""
    return torch.maximum(pair.averages[track].double().abs(), pair.live.double().abs())


def spacing(of: Tensor, digits: int) -> Tensor:
    """Between neighbours of a float with so many digits."""
    return torch.exp2(torch.frexp(of).exponent.double() - digits)


def one_step(half: Tensor) -> Tensor:
    """From a 16-bit float to the next larger one."""
    bits = half.abs().view(torch.int16)
    return (bits + 1).view(half.dtype).double() - bits.view(half.dtype).double()


def agree(
    before: Sequence[Pair], weights: Sequence[float], found: Sequence[Parts], want: Sequence[Parts]
) -> None:
    """The same bits at weight 1, where nothing is computed before rounding; else the same up to that."""
    apart = elements = 0
    for pair, (averages, lows), (averages_, lows_) in zip(before, found, want, strict=True):
        for track, weight in enumerate(weights):
            average, average_ = averages[track], averages_[track]
            assert average.stride() == average_.stride()
            assert torch.isfinite(average).all()
            if weight == 1:
                assert torch.equal(average, average_)
                assert not lows or torch.equal(lows[track], lows_[track])
            else:
                digits = {torch.float64: 53}.get(average.dtype, 24)
                far = (average.double() - average_.double()).abs()
                rule = spacing(largest(pair, track), digits)
                if average.dtype.itemsize < 4:
                    rule = rule + one_step(average_)
                    apart += int(far.count_nonzero())
                    elements += far.numel()
                assert (far <= rule).all()
            if lows and lows[track].dtype == torch.int8:
                far = join(average, lows[track]).double() - join(average_, lows_[track]).double()
                assert (far.abs() <= spacing(largest(pair, track), 16)).all()
                assert (far != 0).sum() <= 0.01 * far.numel() + 1
    assert apart <= 1e-3 * elements


@pytest.mark.parametrize(("live", "store", "which"), CASES, ids=str)
def test_it_agrees_with_plain_torch(ran: dict[str, Any], live: torch.dtype, store: str, which: int) -> None:
    before, plain = (worker.pairs(live, store) for _ in range(2))
    Foreach(plain, worker.SEED).update(worker.WEIGHTS[which], worker.STEP, skip=which == 0)
    agree(before, worker.WEIGHTS[which], ran["averaged"][str(live), store, which], worker.parts(plain))


@pytest.mark.parametrize(("live", "store", "which"), CASES, ids=str)
def test_it_is_the_formula(ran: dict[str, Any], live: torch.dtype, store: str, which: int) -> None:
    digits = {"float32": 23, "float64": 52, "bfloat16": 8, "float16": 11, "split": 16, "compensated": 46}[
        store
    ]
    for pair, (averages, lows) in zip(
        worker.pairs(live, store), ran["averaged"][str(live), store, which], strict=True
    ):
        for track, weight in enumerate(worker.WEIGHTS[which]):
            old = whole(pair.averages, pair.residuals, track)
            theta = pair.live.to(arithmetic_dtype(pair)).double()
            new = old + weight * (theta - old)
            error = (whole(averages, lows, track) - new).abs()
            rule = 1.01 * spacing(largest(pair, track), digits)
            if store == "compensated":
                rule += 2**-22 * weight * (theta - old).abs()
            if store == "float16":
                rule = rule.clamp(min=2**-24)
            assert (error <= rule).all()


def whole(averages: Sequence[Tensor], lows: Sequence[Tensor], track: int) -> Tensor:
    """An average with its low part, float64."""
    average = averages[track]
    if not lows:
        return average.double()
    low = lows[track]
    return average.double() + low.double() if low.dtype == torch.float32 else join(average, low).double()


def test_what_cannot_be_stored_keeps_its_average_and_is_counted(ran: dict[str, Any]) -> None:
    done, before = ran["counted"], worker.mixed()
    tensors, updates = [0] * len(before), 0
    for update, bad in enumerate(worker.BAD):
        plain = worker.moved(before, "cpu")
        worker.spoilt(before, update)
        worker.spoilt(plain, update)
        Foreach(plain, worker.SEED).update([0.3], update, skip=True)
        for i, (where, _) in bad.items():
            averages, lows = done["parts"][update][i]
            assert torch.equal(averages[0][where], before[i].averages[0][where])
            assert not lows or torch.equal(lows[0][where], before[i].residuals[0][where])
            before[i].live[where] = 0  # where it went nowhere it says nothing about the spacing
            tensors[i] += 1
        agree(before, [0.3], done["parts"][update], worker.parts(plain))
        updates += bool(bad)
        assert (done["tensors"][update], done["updates"][update]) == (tensors, updates)
        assert done["bad"][update] == [pair.name for i, pair in enumerate(before) if i in bad]
        before = [
            Pair(p.name, p.live, tuple(averages), tuple(lows))
            for p, (averages, lows) in zip(before, done["parts"][update], strict=True)
        ]


def test_nothing_is_hidden_or_counted_where_nothing_is_skipped(ran: dict[str, Any]) -> None:
    assert ran["passed"]["tensors"] == [0] * len(worker.STORED)
    for averages, lows in ran["passed"]["parts"]:
        nan, inf, negative, large, own = averages[0][:5].tolist()
        assert nan != nan
        assert own != own
        assert (inf, negative) == (torch.inf, -torch.inf)
        # bfloat16 is 2¹² apart there; float16 ends before.
        assert abs(large - 1e6) <= 2**12 or (averages[0].dtype == torch.float16 and large == torch.inf)
        assert not lows or lows[0][1] == 0


def test_tensors_of_a_kind_share_one_launch(ran: dict[str, Any]) -> None:
    assert ran["launched"] == 3


def test_the_kernel_compiles_for_a_gpu_with_wide_accesses(tmp_path: Path) -> None:
    assembly = worked("triton_worker", ("compile", "80"), tmp_path)
    assert len(assembly) == 9
    for (live, store), text in assembly.items():
        wide = {"float64": "v2.b64"}
        assert f"ld.global.{wide.get(live, 'v4.b32')}" in text, (live, store)
        assert f"st.global.{wide.get(store, 'v4.b32')}" in text, (live, store)
        # A word is computed once for the two elements that share it: 8 for 16 elements, three tracks, and
        # all of that twice, for blocks that are whole and for those that are not.
        draws = store in ("bfloat16", "float16", "split")
        assert text.count(str(0x7FEB352D)) == (2 * 3 * 8 if draws else 0), (live, store)


def one(live: Tensor, *averages: Tensor, lows: tuple[Tensor, ...] = ()) -> Pair:
    return Pair("w", live, averages, lows)


def test_it_takes_plain_memory_of_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    full, half = torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.bfloat16)
    int8 = torch.zeros(4, 3, dtype=torch.int8)
    assert not triton.takes(one(full, full.clone()))
    monkeypatch.setattr(triton, "INTERPRETED", True)
    assert triton.takes(one(full, full.clone(), full.clone()))
    assert triton.takes(one(full, half, lows=(int8,)))
    assert triton.takes(one(full, full.clone(), lows=(full.clone(),)))
    assert not triton.takes(one(full, half.half(), lows=(int8,)))
    assert not triton.takes(one(full, torch.zeros(3, 4).t()))
    assert not triton.takes(one(torch.zeros(8, 3)[::2], full))
    assert not triton.takes(one(full.to(torch.complex64), full.to(torch.complex64)))
    assert not triton.takes(one(full, full.to("meta")))


def test_pairs_of_two_devices_are_refused() -> None:
    pairs = [one(torch.zeros(3), torch.zeros(3)), one(*torch.zeros(2, 3, device="meta"))]
    with pytest.raises(ConfigError, match=r'w is on meta and w on cpu: .* engine="foreach"'):
        triton.Triton(pairs, 0)


@gpu
def test_a_captured_launch_is_another_update_at_every_replay() -> None:
    eager, captured = (worker.moved(worker.mixed(), "cuda") for _ in range(2))
    first, second = triton.Triton(eager, worker.SEED), triton.Triton(captured, worker.SEED)
    for engine in (first, second):  # compiles
        engine.update([0.3], 0, skip=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        second.record(skip=True)
    for update in range(len(worker.BAD)):
        worker.spoilt(eager, update)
        worker.spoilt(captured, update)
        first.update([0.1 * update], update, skip=True)
        second.prepare([0.1 * update], update)
        graph.replay()
    for (averages, lows), (averages_, lows_) in zip(worker.parts(eager), worker.parts(captured), strict=True):
        assert all(map(torch.equal, averages + lows, averages_ + lows_))
    assert torch.equal(first.counts.tensors, second.counts.tensors)
    assert first.counts.updates == second.counts.updates == sum(map(bool, worker.BAD))


@gpu
def test_an_update_is_a_copy_and_a_launch_per_kind() -> None:
    pairs = [
        worker.pair(f"{store} {i}", worker.values([5000], torch.Generator()), store, 2, torch.Generator())
        for store in ("float32", "bfloat16", "split")
        for i in range(20)
    ]
    engine = triton.Triton(worker.moved(pairs, "cuda"), worker.SEED)
    engine.update([0.3, 0.7], 0, skip=True)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        engine.update([0.3, 0.7], 1, skip=True)
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert sorted(name.split(" ")[0] for name in names) == ["Memcpy", "average", "average", "average"]
