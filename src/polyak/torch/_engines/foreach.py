"""The engine for any device: torch's own multi-tensor operations, on whole tensors.

    ``avg ← avg + (1-β)·(θ - avg)``

is ``lerp``, which has no bias (``β·avg + (1-β)·θ`` in float32 drifts by -2e-4 relative over 100,000 steps)
and keeps a constant exactly.

One call updates all tensors of a dtype if nothing is masked, converted or rounded, and a few calls a batch of
them if θ is masked; the rest is updated chunk by chunk. No temporary is as large as the model.
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's multi-tensor operations have no public names.

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyak._kernel.several import Several
from polyak.torch._engines.base import Counts, Pair, arithmetic_dtype, storage_dtype
from polyak.torch._engines.chunks import (
    DEVICE_CHUNK,
    blend_pair,
    chunks,
    largest_values,
    looks_storable,
    shaped,
    storable,
)

_BATCH = 1 << 22  # elements masked at a time on a CPU: temporaries of some 16 MiB of float32


class Foreach(Several):
    """Averages prepared for updating.

    Args:
        pairs: θ and averages by name, none of them empty.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    name = "foreach"
    counts: Counts | None = None

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        self.pairs, self._seed = pairs, seed
        groups = _alike([pair for pair in pairs if _unrounded(pair)])
        self._direct = [group for group in groups if is_direct(group[0])]
        self._batches = [(is_direct(group[0]), batch) for group in groups for batch in _batches(group)]

    def bad(self) -> list[str]:
        return bad_names(self.pairs)

    @torch.no_grad()
    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        self.began = step
        marks: dict[int, Tensor | None] = {}  # by id: the pieces of a sharded tensor have one name
        for direct, batch in self._batches:
            if skip or not direct:
                found = _blend_batch(batch, weights, skip)
                marks |= zip(map(id, batch), found, strict=True)
        for group in [] if skip else self._direct:
            _lerp(group, weights)
            marks |= dict.fromkeys(map(id, group))
        for pair in self.pairs:
            if id(pair) not in marks:
                marks[id(pair)] = blend_pair(pair, weights, self._seed, step, skip)
        self.ended = step
        device = self.pairs[0].averages[0].device
        found = [mark.to(device) for pair in self.pairs if (mark := marks[id(pair)]) is not None]
        return torch.stack(found) if skip else None


def _lerp(group: Sequence[Pair], weights: Sequence[float]) -> None:
    live = [pair.live for pair in group]
    for track, weight in enumerate(weights):
        torch._foreach_lerp_([pair.averages[track] for pair in group], live, weight)


def _blend_batch(
    batch: Sequence[Pair], weights: Sequence[float], skip: bool
) -> Sequence[Tensor] | Sequence[None]:
    """A batch, under ``skip`` where θ is finite, in as many calls whatever the number of tensors.

    Returns:
        Under ``skip`` which tensors were not finite throughout, bool [] each.
    """
    live = [pair.live for pair in batch]
    if skip and live[0].is_cpu and is_direct(batch[0]) and looks_storable(live, storage_dtype(batch[0])):
        _lerp(batch, weights)
        return [torch.tensor(False, device="cpu")] * len(batch)
    theta = torch.cat([tensor.reshape(-1) for tensor in live]).to(arithmetic_dtype(batch[0]))
    fine = torch.isfinite(theta) if skip else None
    for track, weight in enumerate(weights):
        averages = [pair.averages[track] for pair in batch]
        old = torch.cat([tensor.reshape(-1) for tensor in averages])
        new = old.lerp_(theta if fine is None else torch.where(fine, theta, old), weight)
        torch._foreach_copy_(averages, shaped(new, averages))
    if fine is None:
        return [None] * len(batch)
    norms = torch._foreach_norm(shaped(theta, live), math.inf)
    return list(~torch.stack(norms).isfinite())


def _batches(group: Sequence[Pair]) -> list[list[Pair]]:
    """Batches whose temporaries are small; larger tensors are updated chunk by chunk, and in no batch."""
    most = _BATCH if group[0].live.is_cpu else DEVICE_CHUNK
    batches: list[list[Pair]] = [[]]
    filled = 0
    for pair in group:
        size = pair.live.numel()
        if size > most:
            continue
        if filled + size > most:
            batches.append([])
            filled = 0
        batches[-1].append(pair)
        filled += size
    return [batch for batch in batches if batch]


def is_direct(pair: Pair) -> bool:
    """Whether θ is averaged without conversion: same dtype and device, one part, no rounding."""
    average = pair.averages[0]
    same = (average.dtype, average.device) == (pair.live.dtype, pair.live.device)
    return same and average.dtype.itemsize >= 4 and not pair.residuals


def _unrounded(pair: Pair) -> bool:
    """Whether θ is averaged without rounding, converted at most."""
    average = pair.averages[0]
    return average.dtype.itemsize >= 4 and average.device == pair.live.device and not pair.residuals


def bad_names(pairs: Sequence[Pair]) -> list[str]:
    """Names of tensors with elements that cannot be stored. If there are none, waits for each device once."""
    largest = largest_values([pair.live for pair in pairs])
    bad = [
        p for p, value in zip(pairs, largest, strict=True) if not value <= torch.finfo(storage_dtype(p)).max
    ]
    return [p.name for p in bad if not all(bool(storable(c.live, storage_dtype(p)).all()) for c in chunks(p))]


def _alike(pairs: Sequence[Pair]) -> list[list[Pair]]:
    groups: dict[object, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.live.device, pair.live.dtype, storage_dtype(pair)), []).append(pair)
    return list(groups.values())
