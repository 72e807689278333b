"""Averaging chunk by chunk, so that the temporaries of masking, rounding and two-part averages stay small."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's multi-tensor operations have no public names.

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor

from polyak.torch._engines.base import Pair, arithmetic_dtype, is_dense, storage_dtype
from polyak.torch._engines.rounding import compensate, draw_key, join, random_bits, split, stochastic_round

CHUNK = 1 << 19  # elements at a time: 2 MiB of float32, which caches hold; half of it took 10 % longer
DEVICE_CHUNK = 1 << 24  # on a GPU each call costs microseconds whatever its size; 64 MiB of float32


class Chunk(NamedTuple):
    """The same elements of a pair's tensors.

    first: the index of the first element in the whole tensor.
    live: in the arithmetic's dtype.
    """

    first: int
    live: Tensor
    averages: list[Tensor]
    residuals: list[Tensor]


def chunks(pair: Pair) -> Iterator[Chunk]:
    """Slices of at most ``chunk_for`` elements, or one slice across the longest dimension."""
    tensors = list(pair.tensors)
    tracks = len(pair.averages)
    if is_dense(pair):
        tensors = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]
    shape = tensors[0].shape
    longest = max(range(len(shape)), key=shape.__getitem__)
    rows = max(1, chunk_for(tensors[1].device) * shape[longest] // shape.numel())
    first = pair.offset
    for i in range(0, shape[longest], rows):
        live, *kept = [t.narrow(longest, i, min(rows, shape[longest] - i)) for t in tensors]
        yield Chunk(first, live.to(kept[0].device, arithmetic_dtype(pair)), kept[:tracks], kept[tracks:])
        first += live.numel()


def chunk_for(device: torch.device) -> int:
    """Elements averaged at a time on a device."""
    return CHUNK if device.type == "cpu" else DEVICE_CHUNK


def shaped(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of one memory in the shapes of these tensors, one after the other."""
    ends = list(accumulate(tensor.numel() for tensor in like))
    return [flat[end - t.numel() : end].view(t.shape) for t, end in zip(like, ends, strict=True)]


def storable(value: Tensor, storage: torch.dtype) -> Tensor:
    """Finite in the storage dtype too: an infinity in an average stays forever, and float16 ends at 65504."""
    if storage.itemsize >= 4:
        return torch.isfinite(value)
    return value.abs() <= torch.finfo(storage).max


def looks_storable(values: list[Tensor], storage: torch.dtype) -> bool:
    """Whether a quick check, which waits for the device, shows that all of these are ``storable``.

    NaN and infinity make every sum non-finite, and a sum takes half the time of a norm, a twentieth of
    ``isfinite``; the norm also bounds each element. Both can overflow for valid values, so False only means
    that elements must be checked.
    """
    if len(values) == 1 and storage.itemsize >= 4:
        return cmath.isfinite(values[0].sum().item())
    norms = torch._foreach_norm(values, 2)
    return torch.stack(norms).sum().item() <= torch.finfo(storage).max


def largest_values(values: Sequence[Tensor]) -> list[float]:
    """``max |x|`` of each tensor, as float32; NaN or infinity where one is in it, or where it may be.

    Calls and waits do not grow with the number of tensors: a few for each dtype, one wait for each device.
    """
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, value in enumerate(values):
        groups.setdefault((value.device, value.dtype), []).append(i)
    order: dict[torch.device, list[int]] = {}
    norms: dict[torch.device, list[Tensor]] = {}
    out = [math.nan] * len(values)
    for (device, dtype), places in groups.items():
        if dtype.itemsize == 1:  # torch has no norm of 8-bit floats
            continue
        each = torch._foreach_norm([values[i].detach() for i in places], math.inf)
        norms.setdefault(device, []).append(torch.stack(each).to(torch.float32))
        order.setdefault(device, []).extend(places)
    for device, found in norms.items():
        for i, norm in zip(order[device], cast(list[float], torch.cat(found).tolist()), strict=True):
            out[i] = norm
    return out


def blend_pair(pair: Pair, weights: Sequence[float], seed: int, step: int, skip: bool) -> Tensor | None:
    """One update of a pair, chunk by chunk.

    Returns:
        Under ``skip`` whether some of θ could not be stored, bool [] where the averages are; else None.
    """
    found: Tensor | None = None
    for chunk in chunks(pair):
        fine: Tensor | None = None
        if skip and not (chunk.live.is_cpu and looks_storable([chunk.live], storage_dtype(pair))):
            fine = storable(chunk.live, storage_dtype(pair))
            bad = ~fine.all()
            found = bad if found is None else found | bad
        for track, weight in enumerate(weights):
            low = chunk.residuals[track] if chunk.residuals else None
            key = draw_key(seed, step, pair.key, track)
            _blend(chunk, chunk.averages[track], low, weight, key, fine)
    return torch.tensor(False, device="cpu") if skip and found is None else found


def _blend(
    chunk: Chunk, average: Tensor, low: Tensor | None, weight: float, key: int, fine: Tensor | None
) -> None:
    """``avg ← lerp(avg, θ, w)`` where θ is fine, in θ's precision, rounded as the storage asks."""
    value = chunk.live
    if low is not None and low.dtype == torch.float32:
        _compensated(average, low, value, weight, fine)
        return
    if low is None and average.dtype.itemsize >= 4:
        average.lerp_(value if fine is None else torch.where(fine, value, average), weight)
        return
    old = average.to(value.dtype) if low is None else join(average, low)
    new = old.lerp(value if fine is None else torch.where(fine, value, old), weight)
    random = random_bits(chunk.first, new.numel(), key, new.device).view(new.shape)
    if low is None:
        average.copy_(stochastic_round(new, average.dtype, random))
    else:
        high, rest = split(new, random)
        average.copy_(high)
        low.copy_(rest)


def _compensated(average: Tensor, low: Tensor, value: Tensor, weight: float, fine: Tensor | None) -> None:
    a, b = average.clone(), low.clone()
    if weight == 1:
        a, b = value, torch.zeros_like(low)
    else:
        compensate(a, b, value, weight)
    average.copy_(a if fine is None else torch.where(fine, a, average))
    low.copy_(b if fine is None else torch.where(fine, b, low))
