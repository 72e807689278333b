"""The engine for any device: torch's own multi-tensor operations.

    ``avg ← avg + (1-β)·(θ - avg)``

is ``lerp``: of the ways to write an average this one has no bias (``β·avg + (1-β)·θ`` in float32 drifts
by -2e-4 relative over 100,000 steps) and keeps a constant exactly.

Three paths: one call for all tensors where dtypes match and θ is finite; chunk by chunk where θ must be
converted or masked; chunk by chunk with stochastic rounding where the average is stored in 16 bits.
No path makes a second model: temporaries are at most ``_CHUNK`` elements or one row of one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from polyak.errors import NonFiniteError
from polyak.torch.engines.tally import Tally

NonFinitePolicy: TypeAlias = Literal["skip", "raise", "ignore"]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Pair:
    """θ and its averages, one per track."""

    name: str
    live: Tensor
    averages: tuple[Tensor, ...]

    @property
    def direct(self) -> bool:
        """Whether θ and the averages can meet in one operation."""
        average = self.averages[0]
        wide = average.dtype.itemsize >= 4  # 16-bit averages are rounded stochastically, chunk by chunk
        return wide and average.dtype == self.live.dtype and average.device == self.live.device


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
        self._pairs = [pair for pair in pairs if pair.live.numel()]
        self._policy, self._tally, self._seed = policy, tally, seed
        self._chunked = [pair for pair in self._pairs if not pair.direct]
        self._groups = _groups([pair for pair in self._pairs if pair.direct])
        self._looks = [
            [pair.live for pair in pairs]
            for pairs in _by(self._pairs, lambda p: (p.live.device, p.live.dtype))
        ]
        self._on_host = all(pair.live.device.type == "cpu" for pair in self._pairs)
        home = self._pairs[0].live.device if self._pairs else torch.device("cpu")
        tally.read()
        tally.open([pair.name for pair in self._pairs], home)

    def update(self, betas: Sequence[float], step: int) -> None:
        """One update of every track; ``betas[k]`` is the composed decay of track k.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        weights = [1 - beta for beta in betas]
        random = _Random(self._seed, step)
        with torch.no_grad():
            if self._must_mask(step):
                self._masked(weights, random)
                return
            for live, tracks in self._groups:
                for averages, weight in zip(tracks, weights, strict=True):
                    torch._foreach_lerp_(averages, live, weight)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            for pair in self._chunked:
                for value, averages in _chunks(pair):
                    for average, weight in zip(averages, weights, strict=True):
                        _blend(average, value, weight, random)

    def _must_mask(self, step: int) -> bool:
        """Whether this update must look at each element.

        On the host one look at the norms costs a read and no synchronisation, and nearly every update
        then takes the fast path. Elsewhere looking would stall the queue, so "skip" always masks. A
        norm that overflows for finite θ only sends the update down the masked path.
        """
        if self._policy == "ignore":
            return False
        if self._policy == "skip" and not self._on_host:
            return True
        if self._all_finite():
            return False
        if self._policy == "raise":
            bad = [pair.name for pair in self._pairs if not _finite(pair.live).all()]
            if not bad:
                return False
            raise NonFiniteError(
                f"{bad[0]} is not finite at step {step} (nor are {len(bad) - 1} of {len(self._pairs)} others). "
                'Nothing was averaged. on_nonfinite="skip" would keep the average of such elements.'
            )
        return True

    def _all_finite(self) -> bool:
        for live in self._looks:
            norms = torch._foreach_norm(live, 2)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            if not torch.stack(norms).isfinite().all().item():
                return False
        return True

    def _masked(self, weights: Sequence[float], random: _Random) -> None:
        hits = self._tally.blank()
        for i, pair in enumerate(self._pairs):
            for value, averages in _chunks(pair):
                finite = torch.isfinite(value)
                hits[i] |= (~finite).any().to(hits.device)
                for average, weight in zip(averages, weights, strict=True):
                    _blend(average, torch.where(finite, value, average.to(value.dtype)), weight, random)
        self._tally.add(hits)


class _Random:
    """The random bits of one update: a function of (seed, step), so a resumed run draws the same."""

    def __init__(self, seed: int, step: int) -> None:
        # Weyl sequence constant: neighbouring steps and seeds land far apart.
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
    quantum = (exponent - 1).clamp_(min=lowest) - digits  # log₂ q
    scaled = torch.ldexp(value.double(), -quantum)  # float64: 2^-quantum can exceed float32's range
    floor = scaled.floor()
    return torch.ldexp(floor + (uniform < scaled - floor), quantum).to(torch.float32).to(dtype)


def _blend(average: Tensor, value: Tensor, weight: float, random: _Random) -> None:
    """``avg ← lerp(avg, θ, 1-β)`` on one chunk, in θ's precision, rounded stochastically into 16 bits."""
    if average.dtype.itemsize >= 4:
        average.lerp_(value, weight)
    else:
        new = average.to(value.dtype).lerp_(value, weight)
        average.copy_(stochastic_round(new, average.dtype, random.uniform_like(new)))


def _finite(tensor: Tensor) -> Tensor:
    return torch.isfinite(tensor if tensor.dtype.itemsize > 1 else tensor.float())  # no isfinite in 8 bits


def _chunks(pair: Pair) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Slices along the first dimension: θ as the arithmetic wants it, and views of its averages."""
    tensors = [pair.live, *pair.averages]
    if pair.live.ndim == 0:
        tensors = [tensor.unsqueeze(0) for tensor in tensors]
    average = tensors[1]
    dtype = average.dtype if average.dtype.itemsize >= 4 else torch.float32
    rows = max(1, _CHUNK * tensors[0].shape[0] // tensors[0].numel())
    pieces: list[tuple[Tensor, ...]] = [tensor.split(rows) for tensor in tensors]  # pyright: ignore[reportUnknownVariableType]
    for live, *averages in zip(*pieces, strict=True):
        yield live.to(average.device, dtype), averages


def _groups(pairs: Sequence[Pair]) -> list[tuple[list[Tensor], list[list[Tensor]]]]:
    """One (θs, averages of each track) per device and dtype, the unit of one multi-tensor call."""
    return [
        (
            [pair.live for pair in group],
            [list(track) for track in zip(*(p.averages for p in group), strict=True)],
        )
        for group in _by(pairs, lambda pair: (pair.live.device, pair.live.dtype))
    ]


def _by(pairs: Sequence[Pair], key: Callable[[Pair], Hashable]) -> list[list[Pair]]:
    groups: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return list(groups.values())
