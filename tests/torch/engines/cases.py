"""What the tests of the CPU engines share: tensors of every kind, and how close two results must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polyak.torch._engines.base import Engine, Marks, Pair, storage_dtype
from polyak.torch._engines.rounding import join, split
from polyak.torch._engines.select import make_engine

LIVE = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
STORES = (*LIVE, "split", "compensated")
SIZES = (1, 511, 512, 513, 1023, 1025, 2049, 70_000)
NAN, INF = float("nan"), float("inf")
SEED, STEP = (1 << 63) + 12345, 1_000_003  # more than 63 bits, more than 16


def values(shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Of many magnitudes, float16's subnormal ones too."""
    power = torch.randint(-22, 4, tuple(shape), generator=random)
    return torch.randn(tuple(shape), generator=random) * torch.exp2(power)


def stored(value: Tensor, store: str) -> tuple[Tensor, Tensor | None]:
    """A float32 as an average and its low part, in the same layout."""
    if store == "split":
        return split(value)
    if store == "compensated":
        return value, value.roll(1, 0).mul_(2**-26)
    return value.to(LIVE[store], copy=True), None


def pair(name: str, live: Tensor, store: str, tracks: int, random: torch.Generator) -> Pair:
    kept = [stored(values(live.shape, random), store) for _ in range(tracks)]
    averages = tuple(torch.empty_like(live, dtype=a.dtype).copy_(a) for a, _ in kept)
    residuals = tuple(torch.empty_like(live, dtype=b.dtype).copy_(b) for _, b in kept if b is not None)
    return Pair(name, live, averages, residuals)


def pairs(live: str, store: str, tracks: int, sizes: Sequence[int] = SIZES) -> list[Pair]:
    """θ of every size, and one that is dense in another order."""
    random = torch.Generator().manual_seed(1)
    thetas = {f"of {size}": values([size], random) for size in sizes}
    thetas["channels last"] = values([2, 3, 9, 31], random).to(memory_format=torch.channels_last)
    return [pair(n, theta.to(LIVE[live], copy=True), store, tracks, random) for n, theta in thetas.items()]


def spoilt(clean: Sequence[Pair]) -> list[Pair]:
    """The same with elements of θ that cannot be stored, in some of the tensors."""
    for one in clean[1::2]:
        theta = one.live.as_strided((one.live.numel(),), (1,))
        theta[::97], theta[5::101], theta[7::103] = NAN, INF, -INF
        limit = torch.finfo(storage_dtype(one)).max
        if limit < torch.finfo(theta.dtype).max:
            theta[11::107] = torch.tensor(limit, dtype=torch.float64).mul(1.01).to(theta.dtype)
    return list(clean)


def copied(of: Sequence[Pair]) -> list[Pair]:
    """The same values, averages in memory of their own."""
    return [
        Pair(p.name, p.live, tuple(a.clone() for a in p.averages), tuple(b.clone() for b in p.residuals))
        for p in of
    ]


def parts(of: Sequence[Pair]) -> list[Tensor]:
    return [tensor for pair in of for tensor in (*pair.averages, *pair.residuals)]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Bit by bit."""
    return all(map(torch.equal, map(_bits, a), map(_bits, b)))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def whole(of: Pair, track: int) -> Tensor:
    """All digits of an average, in float64."""
    return (join(of.averages[track], of.residuals[track]) if of.residuals else of.averages[track]).double()


def gap(value: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart neighbours are in the binade of a float64 value."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(value.abs().clamp(min=info.tiny)))) * info.eps


def native(of: Sequence[Pair], seed: int = SEED) -> Engine:
    """The engine on the C kernel."""
    return make_engine("native", of, seed)


def marked(engine: Engine, marks: Marks) -> set[str]:
    """The tensors an update found elements in that cannot be stored."""
    if marks is None:
        return set()
    return {pair.name for pair, mark in zip(engine.pairs, list(marks), strict=True) if mark}


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
