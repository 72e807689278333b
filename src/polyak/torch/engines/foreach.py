"""The engine for any device: torch's own multi-tensor operations.

    ``avg ← avg + (1-β)·(θ - avg)``

is ``lerp``: of the ways to write an average this one has no bias (``β·avg + (1-β)·θ`` in float32 drifts
by -2e-4 relative over 100,000 steps) and keeps a constant exactly.

Three paths: one call for a block of tensors where θ is finite, through a scratch block where it must be
converted; chunk by chunk where it is masked; chunk by chunk with stochastic rounding where the average
is stored in 16 bits.
No path makes a second model: temporaries are at most ``_CHUNK`` elements, or one slice across the longest
dimension of a tensor that is not contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from polyak.errors import NonFiniteError
from polyak.torch.engines.tally import Tally

NonFinitePolicy: TypeAlias = Literal["skip", "raise", "ignore"]
_CHUNK = 1 << 20  # elements converted or masked at a time: 4 MiB of float32
_BLOCK = (
    1 << 18
)  # elements looked at, then averaged, before the next: three times 1 MiB, within a core's share of cache


@dataclass(frozen=True)
class Pair:
    """θ and its averages, one per track."""

    name: str
    live: Tensor
    averages: tuple[Tensor, ...]


class Foreach:
    """Averages prepared for updating.

    Args:
        pairs: θ and averages by name; those without elements are left out.
        policy: what to do with elements of θ that are not finite.
        tally: counts the updates in which some were not.
        seed: makes, with the step, the random bits that round 16-bit averages.
    """

    name = "foreach"

    def __init__(self, pairs: Sequence[Pair], policy: NonFinitePolicy, tally: Tally, seed: int) -> None:
        self._blocks = _blocks([pair for pair in pairs if pair.live.numel()])
        self._policy, self._tally, self._seed = policy, tally, seed
        ordered = [pair for block in self._blocks for pair in block.pairs]
        tally.read()
        tally.open([p.name for p in ordered], ordered[0].live.device if ordered else torch.device("cpu"))

    def update(self, betas: Sequence[float], step: int) -> None:
        """One update of every track; ``betas[k]`` is the composed decay of track k.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        if self._policy == "raise":
            self._refuse_nonfinite(step)
        weights = [1 - beta for beta in betas]
        random = _Random(self._seed, step)
        hits: Tensor | None = None
        with torch.no_grad():
            for block in self._blocks:
                if self._policy == "skip" and not block.seen_finite():
                    hits = self._tally.blank() if hits is None else hits
                    block.blend_finite(weights, random, hits)
                else:
                    block.blend(weights, random)
            if hits is not None:
                self._tally.add(hits)

    def _refuse_nonfinite(self, step: int) -> None:
        pairs = [pair for block in self._blocks if not block.seen_finite() for pair in block.pairs]
        bad = [
            pair.name for pair in pairs if not all(_storable(v, a[0].dtype).all() for v, a in _chunks(pair))
        ]
        if bad:
            raise NonFiniteError(
                f"{bad[0]} is not finite, or beyond the storage's range, at step {step} ({len(bad)} tensors "
                "are). Nothing was averaged. "
                'on_nonfinite="skip" would keep the average of such elements.'
            )


class _Block:
    """Tensors alike in device and dtype, few enough that a second look finds them in cache."""

    def __init__(self, pairs: Sequence[Pair], first: int, scratch: Tensor | None) -> None:
        self.pairs, self._first = pairs, first
        live, average = pairs[0].live, pairs[0].averages[0]
        self._live = [pair.live for pair in pairs]
        self._tracks = [list(track) for track in zip(*(pair.averages for pair in pairs), strict=True)]
        same = (average.dtype, average.device) == (live.dtype, live.device)
        self._direct = same and average.dtype.itemsize >= 4
        # Where θ must be converted, all of the block is, into memory that every block uses in turn.
        self._converted: list[Tensor] | None = None
        if scratch is not None:
            sizes = _sizes(pairs)
            pieces: Sequence[Tensor] = torch.split(scratch[: sum(sizes)], sizes)
            self._converted = [p.view(t.shape) for p, t in zip(pieces, self._live, strict=True)]
        self._largest = torch.finfo(average.dtype).max
        self._can_look = live.device.type == "cpu" and live.dtype.itemsize > 1

    def seen_finite(self) -> bool:
        """Whether a look at the norms shows that all of θ is finite and within the storage's range.

        On the host that costs one read and no synchronisation. Elsewhere looking would stall the queue
        and the answer is no. A norm too large for small θ only sends the block down the slow path.
        """
        if not self._can_look:
            return False
        norms = torch._foreach_norm(self._live, 2)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return torch.stack(norms).sum().item() <= self._largest

    def blend(self, weights: Sequence[float], random: _Random) -> None:
        """``avg ← lerp(avg, θ, 1-β)`` for every element."""
        if self._direct or self._converted:
            live = self._live
            if self._converted:
                live = self._converted
                torch._foreach_copy_(live, self._live)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            for averages, weight in zip(self._tracks, weights, strict=True):
                torch._foreach_lerp_(averages, live, weight)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            return
        for pair in self.pairs:
            for value, averages in _chunks(pair):
                for average, weight in zip(averages, weights, strict=True):
                    _blend(average, value, weight, random)

    def blend_finite(self, weights: Sequence[float], random: _Random, hits: Tensor) -> None:
        """The same where θ can be stored; other elements keep their average, and their tensor is marked."""
        for i, pair in enumerate(self.pairs, self._first):
            for value, averages in _chunks(pair):
                finite = _storable(value, averages[0].dtype)
                hits[i] |= (~finite).any().to(hits.device)
                for average, weight in zip(averages, weights, strict=True):
                    _blend(average, torch.where(finite, value, average.to(value.dtype)), weight, random)


class _Random:
    """The random bits of one update: a function of (seed, step), so a resumed run draws the same."""

    def __init__(self, seed: int, step: int) -> None:
        # A Weyl constant keeps the ranges of steps of different seeds apart.
        self._seed = (seed * 0x9E3779B97F4A7C15 + step) % (1 << 63)
        self._generators: dict[torch.device, torch.Generator] = {}

    def uniform_like(self, value: Tensor) -> Tensor:
        """Uniform on [0, 1) in steps of 2⁻²⁴, float32."""
        if value.device not in self._generators:
            self._generators[value.device] = torch.Generator(value.device).manual_seed(self._seed)
        generator = self._generators[value.device]
        return torch.rand(value.shape, generator=generator, device=value.device, dtype=torch.float32)


def stochastic_round(value: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    """``value`` on the grid of ``dtype``: up with the probability that makes the mean exact.

    ``⌊x/q⌋·q + q·[u < x/q - ⌊x/q⌋]`` with q the distance between neighbours of the 16-bit format at x,
    subnormals included.

    Args:
        value: float32, any shape.
        dtype: torch.bfloat16 or torch.float16.
        uniform: float32 of the same shape, uniform on [0, 1).

    Returns:
        A tensor of ``dtype``; values beyond its range saturate to infinity as a cast does.

    Source: Gupta et al. 2015, arXiv 1502.02551, §3.
    """
    format_ = torch.finfo(dtype)
    digits = round(-math.log2(format_.eps))
    lowest = round(math.log2(format_.smallest_normal))
    _, exponent = torch.frexp(value)
    power = (exponent.long() - 1).clamp_(lowest, 127) - digits  # log₂ q
    # 2^power by the bits of a float64: in float32 its inverse overflows, as it did in older torch.ldexp.
    quantum = ((power + 1023) << 52).view(torch.float64)
    scaled = value / quantum
    floor = scaled.floor()
    return ((floor + (uniform < scaled - floor)) * quantum).to(torch.float32).to(dtype)


def _blend(average: Tensor, value: Tensor, weight: float, random: _Random) -> None:
    """``avg ← lerp(avg, θ, 1-β)`` on one chunk, in θ's precision, rounded stochastically into 16 bits."""
    if average.dtype.itemsize >= 4:
        average.lerp_(value, weight)
    else:
        new = average.to(value.dtype).lerp_(value, weight)
        average.copy_(stochastic_round(new, average.dtype, random.uniform_like(new)))


def _storable(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite in the storage too: one infinity in an average stays for ever, and float16 ends at 65504."""
    return torch.isfinite(value) if dtype.itemsize >= 4 else value.abs() <= torch.finfo(dtype).max


def _chunks(pair: Pair) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Slices of at most ``_CHUNK`` elements: θ as the arithmetic wants it, and views of its averages."""
    tensors = [pair.live, *pair.averages]
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.view(-1) for tensor in tensors]
    shape, average = tensors[0].shape, tensors[1]
    longest = max(range(len(shape)), key=shape.__getitem__)
    dtype = average.dtype if average.dtype.itemsize >= 4 else torch.float32
    rows = max(1, _CHUNK * shape[longest] // shape.numel())
    pieces: list[tuple[Tensor, ...]] = [tensor.split(rows, longest) for tensor in tensors]  # pyright: ignore[reportUnknownVariableType]
    for live, *averages in zip(*pieces, strict=True):
        yield live.to(average.device, dtype), averages


def _blocks(pairs: Sequence[Pair]) -> list[_Block]:
    groups: dict[object, list[list[Pair]]] = {}
    for pair in pairs:
        live, average = pair.live, pair.averages[0]
        group = groups.setdefault((live.device, live.dtype, average.device, average.dtype), [[]])
        if group[-1] and sum(_sizes(group[-1])) + live.numel() > _BLOCK:
            group.append([])
        group[-1].append(pair)
    blocks: list[_Block] = []
    first = 0
    for group in groups.values():
        scratch = _scratch(group)
        for members in group:
            blocks.append(_Block(members, first, scratch if sum(_sizes(members)) <= _BLOCK else None))
            first += len(members)
    return blocks


def _scratch(group: Sequence[Sequence[Pair]]) -> Tensor | None:
    """Memory to convert the group's θs in, one block at a time, if they need converting.

    16-bit averages are rounded chunk by chunk instead; so is a tensor larger than a block.
    """
    live, average = group[0][0].live, group[0][0].averages[0]
    if average.dtype.itemsize < 4 or (live.dtype, live.device) == (average.dtype, average.device):
        return None
    return torch.empty(_BLOCK, dtype=average.dtype, device=average.device)


def _sizes(pairs: Sequence[Pair]) -> list[int]:
    return [pair.live.numel() for pair in pairs]
