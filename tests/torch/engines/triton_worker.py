"""Run the Triton engine in a process of its own, and save what it did.

``python -m tests.torch.engines.triton_worker run DEVICE FILE``; on "cpu" under ``TRITON_INTERPRET=1``, which
Triton reads as it is imported. ``python -m tests.torch.engines.triton_worker compile ARCHITECTURE FILE``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.registers import ptx_of
from polyak.torch._engines import triton, triton_kernels
from polyak.torch._engines.base import Pair
from polyak.torch._engines.rounding import split
from tests.torch.engines.cases import values

LIVE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STORES = ("float32", "float64", "bfloat16", "float16", "split", "compensated")
# 1-w of the last is a float32: torch makes one of w before it subtracts.
WEIGHTS = ((0.3, 0.7, 1.0), (1e-4, 0.5, 1 - 2**-13))
SIZES = (1, 1023, 1025, 5000, 8192)
SEED, STEP = (1 << 63) + 12345, 1_000_003
GUARD = 4096  # elements behind a tensor that must stay as they are
NAN, INF = math.nan, math.inf

# By update: for some tensors of STORED, which elements become what. Blocks end at 4096.
BAD: tuple[dict[int, tuple[list[int], float]], ...] = (
    {},
    {3: ([0], NAN)},
    {3: ([1, 4999], INF), 0: ([0], -INF)},
    {},
    {4: ([4096], NAN), 5: ([3], 3.4e38), 7: ([4095, 4097], 1e5), 8: ([10], NAN)},
    {4: ([1], NAN), 3: ([4100], -INF), 6: ([0, 512, 4096], -3.4e38)},
)
STORED = (*["float32"] * 5, "bfloat16", "split", "float16", "compensated")


def layouts(generator: torch.Generator) -> dict[str, Tensor]:
    """θ of every size, dense ones in other orders, and one that starts off any 16 bytes."""
    tensors = {f"of {size}": values([size], generator) for size in SIZES}
    tensors["channels last"] = values([2, 3, 9, 31], generator).to(memory_format=torch.channels_last)
    tensors["transposed"] = values([40, 30], generator).t()
    return {**tensors, "unaligned": values([4099], generator)}


# θ's dtype decides how θ is loaded: in blocks that are whole, that end early, and that are not aligned.
OTHER_DTYPES = ("of 5000", "unaligned")


def stored(average: Tensor, store: str, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """An average and its low part, in the layout of the float32 given."""
    if store == "split":
        return split(average)
    if store == "compensated":
        low = values(average.shape, generator) * 2**-26 * average.abs()
        return average, torch.empty_like(average).copy_(low)
    return average.to(getattr(torch, store)), None


def pair(name: str, live: Tensor, store: str, tracks: int, generator: torch.Generator) -> Pair:
    parts = [
        stored(torch.empty_like(live).float().copy_(values(live.shape, generator)), store, generator)
        for _ in range(tracks)
    ]
    residuals = tuple(low for _, low in parts if low is not None)
    return Pair(name, live, tuple(average for average, _ in parts), residuals)


def pairs(live: torch.dtype, store: str, seed: int = 0) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    made: list[Pair] = []
    for name, theta in layouts(generator).items():
        if live != torch.float32 and name not in OTHER_DTYPES:
            continue
        theta = theta.to(live)
        if name == "unaligned":
            theta = torch.cat([theta[:1], theta])[1:]
        made.append(pair(name, theta, store, 3, generator))
    return made


def mixed() -> list[Pair]:
    """One tensor of 5000 for every entry of ``STORED``, in one engine."""
    generator = torch.Generator().manual_seed(5)
    return [pair(f"{i}.{s}", values([5000], generator), s, 1, generator) for i, s in enumerate(STORED)]


def spoilt(clean: Sequence[Pair], update: int) -> None:
    """Make θ what it is in that update."""
    for i, one in enumerate(clean):
        one.live.copy_(values([5000], torch.Generator().manual_seed(100 * update + i)))
        if i in BAD[update]:
            where, what = BAD[update][i]
            one.live[where] = what


def moved(before: Sequence[Pair], device: str) -> list[Pair]:
    """A copy that shares nothing, as aligned or not as it was."""

    def copy(tensor: Tensor) -> Tensor:
        first = tensor.storage_offset()
        base = torch.full([first + tensor.numel() + GUARD], 7, dtype=tensor.dtype, device=device)
        return base.as_strided(tensor.shape, tensor.stride(), first).copy_(tensor)

    return [
        Pair(p.name, copy(p.live), tuple(map(copy, p.averages)), tuple(map(copy, p.residuals)))
        for p in before
    ]


def within(of: Sequence[Pair]) -> bool:
    """Whether nothing was written behind the tensors that ``moved`` made."""
    tensors = [t for p in of for t in (p.live, *p.averages, *p.residuals)]
    return all((t.as_strided([GUARD], [1], t.storage_offset() + t.numel()) == 7).all() for t in tensors)


def parts(of: Sequence[Pair]) -> list[tuple[list[Tensor], list[Tensor]]]:
    return [([t.cpu().clone() for t in p.averages], [t.cpu().clone() for t in p.residuals]) for p in of]


def averaged(device: str) -> dict[tuple[str, str, int], Any]:
    """After one update, by θ's dtype, storage and weights."""
    out: dict[tuple[str, str, int], Any] = {}
    for live in LIVE:
        for store in STORES:
            for which, weights in enumerate(WEIGHTS if live == torch.float32 else WEIGHTS[:1]):
                run = moved(pairs(live, store), device)
                assert all(map(triton.takes, run))
                triton.Triton(run, SEED, concurrent=which == 1).update(weights, STEP, skip=which == 0)
                assert within(run), (live, store)
                out[str(live), store, which] = parts(run)
    return out


def counted(device: str) -> dict[str, Any]:
    """After every update of ``BAD``: averages, counts, and what ``bad`` says."""
    run = moved(mixed(), device)
    engine = triton.Triton(run, SEED)
    out: dict[str, Any] = {"parts": [], "tensors": [], "updates": [], "bad": []}
    for update in range(len(BAD)):
        spoilt(run, update)
        out["bad"].append(engine.bad())
        engine.update([0.3], update, skip=True)
        out["parts"].append(parts(run))
        out["tensors"].append(engine.counts.tensors.tolist())
        out["updates"].append(engine.counts.updates.item())
    return out


def passed(device: str) -> dict[str, Any]:
    """What becomes of NaN and infinity where nothing is skipped."""
    run = moved(mixed(), device)
    for one in run:
        one.live[:4] = torch.tensor([NAN, INF, -INF, 1e6])
        one.live[4:5].view(torch.int32).fill_(0x7FFFFFFF)  # a GPU's own NaN
    engine = triton.Triton(run, SEED)
    engine.update([1.0], 0, skip=False)
    return {"parts": parts(run), "tensors": engine.counts.tensors.tolist()}


class Launches:
    """The kernel, counting."""

    def __init__(self) -> None:
        self.kernel, self.count = triton_kernels.average, 0

    def __getitem__(self, grid: Any) -> Any:
        self.count += 1
        return self.kernel[grid]


def launched(device: str) -> int:
    """Kernels launched in one update of 60 tensors of three kinds."""
    generator = torch.Generator().manual_seed(1)
    kinds = [(torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float32, "split")]
    run = [
        pair(f"{i}", values([100], generator).to(live), store, 2, generator)
        for i, (live, store) in enumerate(kinds * 20)
    ]
    engine = triton.Triton(moved(run, device), SEED)
    launches = Launches()
    triton_kernels.average = launches
    engine.update([0.3, 0.7], 1, skip=True)
    triton_kernels.average = launches.kernel
    return launches.count


def compiled(architecture: str) -> dict[tuple[str, str], str]:
    """The kernel's assembly by θ's dtype and storage; for an NVIDIA GPU that need not be here."""
    kinds = [("float32", store) for store in STORES] + [(str(live)[6:], "float32") for live in LIVE[1:]]
    return {
        (live, store): ptx_of(int(architecture), live, store, 3, persistent=False) for live, store in kinds
    }


if __name__ == "__main__":
    task, on, file = sys.argv[1:]
    if task == "compile":
        torch.save(compiled(on), file)
    else:
        done = {"averaged": averaged(on), "counted": counted(on), "passed": passed(on)}
        torch.save({**done, "launched": launched(on)}, file)
