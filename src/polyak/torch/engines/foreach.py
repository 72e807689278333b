"""The engine for any device: torch's own multi-tensor operations, on whole tensors.

    ``avg ← avg + (1-β)·(θ - avg)``

is ``lerp``: of the ways to write an average this one has no bias (``β·avg + (1-β)·θ`` in float32 drifts
by -2e-4 relative over 100,000 steps) and keeps a constant exactly.

One call updates all tensors of a dtype where nothing is masked, converted or rounded; the rest goes chunk
by chunk, so that no temporary is ever as large as the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak.torch.engines.chunks import blend_pair, chunks, storable
from polyak.torch.engines.contract import Counts, Pair


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

    def bad(self) -> list[str]:
        return bad_names(self.pairs)

    @torch.no_grad()
    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        done: set[str] = set()
        if not skip:
            for group in self._direct:
                live = [pair.live for pair in group]
                for track, weight in enumerate(weights):
                    torch._foreach_lerp_([pair.averages[track] for pair in group], live, weight)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
                done |= {pair.name for pair in group}
        marks = [
            None if pair.name in done else blend_pair(pair, weights, self._seed, step, skip)
            for pair in self.pairs
        ]
        if not skip:
            return None
        device = self.pairs[0].averages[0].device
        return torch.stack([mark.to(device) for mark in marks if mark is not None])


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
