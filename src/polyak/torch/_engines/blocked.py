"""The fallback engine for CPUs without the C kernel: blocks that fit in cache, read from memory once.

A block is converted, where dtypes differ, into one scratch buffer, checked by its sum or its norms, and
blended into every track before the next block is read: more tracks and conversions cost no further reads of
θ. Where no C kernel was built this takes 0.7 to 0.9 of the time of ``foreach`` in float32, and far less from
bfloat16 into float32 (benchmarks/results/without_compiler-2026-11-29.md).
"""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's multi-tensor operations have no public names.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak._kernel.several import Several
from polyak.torch._engines.base import Counts, Pair, is_dense, storage_dtype
from polyak.torch._engines.chunks import CHUNK, blend_pair, looks_storable, shaped
from polyak.torch._engines.foreach import bad_names, is_direct


class Blocked(Several):
    """Averages on the CPU prepared for updating; see ``Foreach``.

    Args:
        pairs: θ and averages by name, none of them empty, all on the CPU.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    name = "blocked"
    counts: Counts | None = None

    def __init__(self, pairs: Sequence[Pair], seed: int) -> None:
        self.pairs = pairs
        self._blocks = _blocks(pairs, seed)

    @torch.no_grad()
    def bad(self) -> list[str]:
        suspects: list[Pair] = []
        for block in self._blocks:
            block.convert()
            if not block.looks_finite():
                suspects += [pair for _, pair in block.members]
        return list(dict.fromkeys(bad_names(suspects)))

    @torch.no_grad()
    def update(self, weights: Sequence[float], step: int, skip: bool) -> Tensor | None:
        self.began = step
        marks: Tensor | None = None
        for block in self._blocks:
            block.convert()
            if not skip or block.looks_finite():
                block.blend(weights, step)
                continue
            marks = _no_marks(len(self.pairs)) if marks is None else marks
            for i, pair in block.members:
                found = blend_pair(pair, weights, block.seed, step, skip=True)
                marks[i] |= bool(found)
        self.ended = step
        return marks


class _Block:
    """Tensors alike in dtype and storage, few enough that a second look finds them in cache."""

    def __init__(self, members: Sequence[tuple[int, Pair]], scratch: Tensor | None, seed: int) -> None:
        self.members, self.seed = members, seed
        pairs = [pair for _, pair in members]
        self._live = [pair.live for pair in pairs]
        self._tracks = [list(track) for track in zip(*(pair.averages for pair in pairs), strict=True)]
        # Where θ must be converted, all of the block is, into memory that every block uses in turn.
        self._converted: list[Tensor] | None = None
        self._looked = self._live
        if scratch is not None:
            self._converted = shaped(scratch, self._live)
            self._looked = [scratch[: sum(_sizes(members))]]
        self._direct = is_direct(pairs[0]) or scratch is not None
        self._storage = storage_dtype(pairs[0])
        self._can_look = self._looked[0].dtype.itemsize > 1

    def convert(self) -> None:
        """Convert θ into the scratch memory, if it needs converting."""
        if self._converted:
            torch._foreach_copy_(self._converted, self._live)

    def looks_finite(self) -> bool:
        """Whether a quick check shows that all of θ is finite and within the storage's range."""
        return self._can_look and looks_storable(self._looked, self._storage)

    def blend(self, weights: Sequence[float], step: int) -> None:
        """``avg ← lerp(avg, θ, w)`` for every element."""
        if not self._direct:
            for _, pair in self.members:
                blend_pair(pair, weights, self.seed, step, skip=False)
            return
        live = self._converted or self._live
        for averages, weight in zip(self._tracks, weights, strict=True):
            torch._foreach_lerp_(averages, live, weight)


def _blocks(pairs: Sequence[Pair], seed: int) -> list[_Block]:
    groups: dict[object, list[list[tuple[int, Pair]]]] = {}
    for i, pair in enumerate(pairs):
        group = groups.setdefault((pair.live.dtype, storage_dtype(pair), len(pair.residuals)), [[]])
        for piece in _pieces(pair):
            if group[-1] and sum(_sizes(group[-1])) + piece.live.numel() > CHUNK:
                group.append([])
            group[-1].append((i, piece))
    blocks: list[_Block] = []
    for group in groups.values():
        scratch = _scratch(group[0][0][1])
        fits = [sum(_sizes(members)) <= CHUNK for members in group]
        blocks += [_Block(m, scratch if fit else None, seed) for m, fit in zip(group, fits, strict=True)]
    return blocks


def _pieces(pair: Pair) -> list[Pair]:
    """A large tensor as several of a block each; not if it is rounded, which depends on element indices."""
    if not is_dense(pair) or pair.residuals or storage_dtype(pair).itemsize < 4 or pair.live.numel() <= CHUNK:
        return [pair]
    flat = [t.detach().as_strided((t.numel(),), (1,)) for t in (pair.live, *pair.averages)]
    starts = range(0, pair.live.numel(), CHUNK)
    cut = [[t[i : i + CHUNK] for t in flat] for i in starts]
    return [Pair(pair.name, live, tuple(averages)) for live, *averages in cut]


def _scratch(pair: Pair) -> Tensor | None:
    """Memory to convert θs in, one block at a time, if they need converting.

    16-bit averages are rounded chunk by chunk instead.
    """
    if storage_dtype(pair).itemsize < 4 or pair.residuals or is_direct(pair):
        return None
    return torch.empty(CHUNK, dtype=storage_dtype(pair), device="cpu")


def _no_marks(size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device="cpu")


def _sizes(members: Sequence[tuple[int, Pair]]) -> list[int]:
    return [pair.live.numel() for _, pair in members]
