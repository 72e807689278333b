"""What was counted, as far as the profile of the shared average needs it.

Equal numbers of samples at consecutive steps are one block, so that a million steps pushed evenly take a few
dozen bytes. Pushes with gaps between their steps are a block each; beyond ``BLOCKS`` of them the lightest
neighbours are joined, which moves weight between those only, and by no more than the profile's ``within``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from polyak.schedules import COPY, Decay, Profile, Run
from polyak.server.weighting import Total, advanced, mass, remaining

BLOCKS = 4096  # of steps, and
AVERAGES = 256  # pushed with a profile of their own, that are kept apart


class Block(NamedTuple):
    """``samples`` at each step from first to last; not exact if it stands for several that were joined."""

    first: int
    last: int
    samples: float
    exact: bool = True


class Left(NamedTuple):
    """``B(s, T-s)`` at the step before a block and at its last: what is left of weights given there."""

    before: float
    last: float


class PushedAverage(NamedTuple):
    """An average that was pushed: its step, its samples and its own profile."""

    step: int
    samples: float
    profile: Profile


@dataclass
class Contributions:
    """The counted pushes.

    blocks: raw parameters, by step.  averages: pushed with a profile.
    blurred: the mass of pushed averages whose profiles are not kept any more.
    """

    blocks: list[Block] = field(default_factory=list[Block])
    averages: list[PushedAverage] = field(default_factory=list[PushedAverage])
    blurred: Total = field(default_factory=Total)

    def add(self, decay: Decay, step: int, samples: float, profile: Profile | None) -> None:
        """Take note of a push that is being counted."""
        if profile is None:
            self.blocks = added(self.blocks, step, samples)
        else:
            self.averages.append(PushedAverage(step, samples, profile))
        if len(self.averages) > AVERAGES:
            self._blur(decay)
        if len(self.blocks) > BLOCKS:
            self.blocks = joined(self.blocks, decay)

    def profile(self, decay: Decay, total: Total) -> Profile | None:
        """The profile of the average: ``Σ m·profile / M``, raw parameters being points.

        None if nothing has weight: then the average is the server's first value, or what a decay of 0 left.
        """
        if not total.mass > 0:
            return None
        newest, terms, unsharp = total.newest, list[tuple[float, tuple[Run, ...]]](), 0.0
        for block, left in zip(self.blocks, _left(self.blocks, decay, newest), strict=True):
            if not block.exact:
                unsharp = max(unsharp, block_mass(block, left, decay) / total.mass)
            terms += _terms(block, left, decay, total.mass)
        for step, samples, own in self.averages:
            weight = mass(decay, step, samples, newest) / total.mass
            terms += (own * weight).terms
            unsharp += own.within * weight
        blurred = advanced(self.blurred, decay, newest).mass / total.mass
        return Profile(tuple(terms), unsharp + blurred)

    def to_config(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        averages = [[one.step, one.samples, one.profile.to_config()] for one in self.averages]
        return {"blocks": [list(one) for one in self.blocks], "averages": averages, "blurred": self.blurred}

    @classmethod
    def from_config(cls, config: Any) -> Contributions:
        """The inverse of ``to_config``, also after JSON."""
        averages = [PushedAverage(s, n, Profile.from_config(own)) for s, n, own in config["averages"]]
        return cls([Block(*one) for one in config["blocks"]], averages, Total(*config["blurred"]))

    def _blur(self, decay: Decay) -> None:
        """Keep the lightest pushed average as a point at its step."""
        newest = max(one.step for one in self.averages)
        weights = [mass(decay, one.step, one.samples, newest) for one in self.averages]
        lightest = weights.index(min(weights))
        gone = self.averages.pop(lightest)
        self.blocks = added(self.blocks, gone.step, gone.samples)
        before = advanced(self.blurred, decay, newest)
        self.blurred = Total(before.newest, before.mass + weights[lightest])


def added(blocks: list[Block], step: int, samples: float) -> list[Block]:
    """The blocks after samples at one more step."""
    i = bisect_left(blocks, step, key=lambda block: block.last)
    around, rest = blocks[:i], blocks[i:]
    piece = [Block(step, step, samples)]
    if rest and rest[0].first <= step:
        first, last, n, exact = rest.pop(0)
        whole = [Block(first, step - 1, n, exact), Block(step, step, n + samples, exact)]
        piece = [one for one in (*whole, Block(step + 1, last, n, exact)) if one.first <= one.last]
    # Only these few may have become equal to a neighbour.
    near = [*around[-1:], *piece, *rest[:1]]
    return [*around[:-1], *_fused(near), *rest[1:]]


def joined(blocks: list[Block], decay: Decay) -> list[Block]:
    """Three quarters as many: in the lighter half of all pairs of neighbours both move to the later's end."""
    lefts = _left(blocks, decay, blocks[-1].last)
    weighed = [
        (block, left, block_mass(block, left, decay)) for block, left in zip(blocks, lefts, strict=True)
    ]
    heavy = [one for one in weighed if one[2] > 0]
    pairs = list(zip(heavy[::2], heavy[1::2], strict=False))
    limit, out = sorted(one[2] + other[2] for one, other in pairs)[len(pairs) // 2], list[Block]()
    for one, other in pairs:
        end = other[0].last
        unit = (1 - decay(end)) * other[1].last
        if one[2] + other[2] <= limit and unit > 0:
            out.append(Block(end, end, (one[2] + other[2]) / unit, exact=False))
        else:
            out += one[0], other[0]
    return out + [one[0] for one in heavy[2 * len(pairs) :]]


def block_mass(block: Block, left: Left, decay: Decay) -> float:
    """``n·Σ (1-βₛ)·B(s, T-s)`` over the block's steps, which telescopes."""
    if block.first == block.last:
        return block.samples * (1 - decay(block.last)) * left.last
    return block.samples * (left.last - left.before)


def _left(blocks: Sequence[Block], decay: Decay, newest: int) -> list[Left]:
    ends = remaining(decay, [end for one in blocks for end in (one.first - 1, one.last)], newest)
    return [Left(*both) for both in zip(ends[::2], ends[1::2], strict=True)]


def _fused(blocks: list[Block]) -> list[Block]:
    """Consecutive exact blocks with equal samples in one."""
    out: list[Block] = []
    for block in blocks:
        if out and out[-1].exact and block == Block(out[-1].last + 1, block.last, out[-1].samples):
            out[-1] = out[-1]._replace(last=block.last)
        else:
            out.append(block)
    return out


def _point(step: int) -> tuple[Run, ...]:
    return (Run(COPY, 0, 1, step, 1),) if step else ()


def _terms(block: Block, left: Left, decay: Decay, whole: float) -> Iterator[tuple[float, tuple[Run, ...]]]:
    """A block as histories: from the point a before it to its end, less what that leaves on a."""
    if block.first == block.last:
        yield block_mass(block, left, decay) / whole, _point(block.first)
        return
    a, length = block.first - 1, block.last - block.first + 1
    yield block.samples * left.last / whole, (*_point(a), Run(decay, a, length, 1, 1))
    yield -block.samples * left.before / whole, _point(a)
