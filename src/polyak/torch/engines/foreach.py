"""The engine for any device: torch's own multi-tensor operations, on whole tensors.

    ``avg ← avg + (1-β)·(θ - avg)``

is ``lerp``: of the ways to write an average this one has no bias (``β·avg + (1-β)·θ`` in float32 drifts
by -2e-4 relative over 100,000 steps) and keeps a constant exactly.

One call updates all tensors of a dtype where nothing is masked, converted or rounded, and a few a batch of
them where θ is masked; the rest goes chunk by chunk. No temporary is ever as large as the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.torch.engines.chunks import blend_pair, chunks, looks_storable, shaped, storable
from polyak.torch.engines.contract import Counts, Pair

_BATCH = 1 << 22  # elements masked at a time: temporaries of some 16 MiB of float32


class Foreach:
    """Averages prepared for updating.

    Args:
        pairs: θ and averages by name, none of them empty.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    name = "foreach"
    counts: Counts | None = None

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        self.pairs, self._seed = pairs, seed
        self._direct = _alike([pair for pair in pairs if is_direct(pair)])
        self._batches = [batch for group in self._direct for batch in _batches(group)]

    def bad(self) -> list[str]:
        return bad_names(self.pairs)

    @torch.no_grad()
    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        marks: dict[str, Tensor | None] = {}
        if skip:
            for batch in self._batches:
                marks |= zip([pair.name for pair in batch], _blend_finite(batch, weights), strict=True)
        else:
            for group in self._direct:
                _lerp(group, weights)
                marks |= dict.fromkeys([pair.name for pair in group])
        for pair in self.pairs:
            if pair.name not in marks:
                marks[pair.name] = blend_pair(pair, weights, self._seed, step, skip)
        device = self.pairs[0].averages[0].device
        found = [mark.to(device) for pair in self.pairs if (mark := marks[pair.name]) is not None]
        return torch.stack(found) if skip else None


def _lerp(group: Sequence[Pair], weights: Sequence[float]) -> None:
    live = [pair.live for pair in group]
    for track, weight in enumerate(weights):
        torch._foreach_lerp_([pair.averages[track] for pair in group], live, weight)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _blend_finite(batch: Sequence[Pair], weights: Sequence[float]) -> list[Tensor]:
    """A batch where θ is finite, in as many launches whatever the number of tensors; marks of the others."""
    live = [pair.live for pair in batch]
    if live[0].is_cpu and looks_storable(live, batch[0].storage):
        _lerp(batch, weights)
        return [torch.tensor(False)] * len(batch)
    theta = torch.cat([tensor.reshape(-1) for tensor in live])
    fine = torch.isfinite(theta)
    for track, weight in enumerate(weights):
        averages = [pair.averages[track] for pair in batch]
        old = torch.cat([tensor.reshape(-1) for tensor in averages])
        new = old.lerp_(torch.where(fine, theta, old), weight)
        torch._foreach_copy_(averages, shaped(new, averages))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    norms = torch._foreach_norm(live, math.inf)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return list(~torch.stack(norms).isfinite())


def _batches(group: Sequence[Pair]) -> list[list[Pair]]:
    """As many tensors as temporaries may be large; a larger tensor goes chunk by chunk, and is in none."""
    batches: list[list[Pair]] = [[]]
    filled = 0
    for pair in group:
        size = pair.live.numel()
        if size > _BATCH:
            continue
        if filled + size > _BATCH:
            batches.append([])
            filled = 0
        batches[-1].append(pair)
        filled += size
    return [batch for batch in batches if batch]


def is_direct(pair: Pair) -> bool:
    """Whether θ goes into the averages as it is: same dtype and device, one part, no rounding."""
    average = pair.averages[0]
    same = (average.dtype, average.device) == (pair.live.dtype, pair.live.device)
    return same and average.dtype.itemsize >= 4 and not pair.lows


def bad_names(pairs: Sequence[Pair]) -> list[str]:
    """Those of which some elements cannot be stored."""
    return [p.name for p in pairs if not all(bool(storable(c.live, p.storage).all()) for c in chunks(p))]


def _alike(pairs: Sequence[Pair]) -> list[list[Pair]]:
    groups: dict[object, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.live.device, pair.live.dtype), []).append(pair)
    return list(groups.values())
