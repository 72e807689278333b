"""What each process says of its average, and the first sentence on which they disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

_FEW = 4
CURE = (
    "Every rank has to call update() at the same steps. To continue, load one saved state in every rank, or "
    "start again with ema.reset() in each."
)


class Held(NamedTuple):
    """A piece of a tensor as its rank describes it.

    dtype, whole: of the tensor, with its whole shape.
    offset, shape: of the piece.
    digest: of its bytes; "" if they are not compared.
    squares: ``‖avg-θ‖²`` and ``‖stored-avg‖²`` of the piece, in a snapshot.
    """

    dtype: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    digest: str = ""
    squares: tuple[float, float] = (0.0, 0.0)

    @property
    def rounded(self) -> bool:
        """Whether updates round it stochastically."""
        return "16" in self.dtype or "8" in self.dtype

    @property
    def form(self) -> str:
        return f"{self.dtype} {self.whole}"


@dataclass(frozen=True)
class Report:
    """What one rank says of its average.

    step: training steps so far.
    seed: of the random bits that round 16-bit averages.
    profiles: for each track, its schedule and the weights of the steps in it, as text.
    held: its pieces, by name.
    """

    step: int
    seed: int
    profiles: Mapping[str, str]
    held: Mapping[str, Held]

    def to_json(self) -> list[Any]:
        return [
            self.step,
            self.seed,
            dict(self.profiles),
            {name: list(held) for name, held in self.held.items()},
        ]

    @classmethod
    def from_json(cls, values: list[Any]) -> Report:
        step, seed, profiles, held = values
        return cls(step, seed, profiles, {name: _held(*fields) for name, fields in held.items()})


def _held(
    dtype: str,
    whole: list[int],
    offset: list[int],
    shape: list[int],
    digest: str,
    squares: tuple[float, float],
) -> Held:
    return Held(dtype, tuple(whole), tuple(offset), tuple(shape), digest, squares)


def disagreement(reports: Mapping[int, Report]) -> str | None:
    """The first difference between the averages of several ranks, as a sentence; None if there is none.

    In the order step, profile, layout, values: each can be the cause of those after it.
    """
    return next(_differences(reports), None)


def _differences(reports: Mapping[int, Report]) -> Iterator[str]:
    steps = {rank: report.step for rank, report in reports.items()}
    yield from odd_ones(steps, "has seen {} steps", "{}")
    for track in _union(report.profiles for report in reports.values()):
        profiles = {rank: report.profiles.get(track) for rank, report in reports.items()}
        yield from _absences(f"track {track!r}", profiles)
        yield from odd_ones(profiles, f"averages {track!r} by {{}}", "by {}")
    for name in _union(report.held for report in reports.values()):
        held = {rank: report.held.get(name) for rank, report in reports.items()}
        yield from _absences(name, held)
        pieces = {rank: piece for rank, piece in held.items() if piece is not None}
        yield from odd_ones(
            {rank: piece.form for rank, piece in pieces.items()}, f"holds {name} as {{}}", "as {}"
        )
        yield from _gaps(name, pieces)
    yield from _unequal(reports)


def _absences(what: str, found: Mapping[int, object]) -> Iterator[str]:
    if absent := [rank for rank, value in found.items() if value is None]:
        present = next(rank for rank, value in found.items() if value is not None)
        yield f"rank {absent[0]} does not hold {what}, rank {present} does"


def odd_ones(values: Mapping[int, object], first: str, further: str) -> Iterator[str]:
    """The ranks whose value is not that of most, in words; nothing if all are the same.

    Args:
        values: by rank; of two that are as frequent, that of the first rank counts as the usual one.
        first: the words after the first rank, with ``{}`` for its value.
        further: those after each further one.
    """
    counts = Counter(values.values())
    usual = max(counts, key=lambda value: counts[value])  # of equals the one counted first
    odd = [rank for rank, value in values.items() if value != usual]
    if not odd:
        return
    rest = [rank for rank, value in values.items() if value == usual]
    forms = (first, *(further,) * (_FEW - 1))
    words = [f"rank {rank} {form.format(values[rank])}" for rank, form in zip(odd, forms, strict=False)]
    words += [f"{len(odd) - _FEW} more otherwise"] if len(odd) > _FEW else []
    most = "the others" if len(rest) > 1 else f"rank {rest[0]}"
    yield f"{', '.join(words)}, {most} {further.format(usual)}"


def _gaps(name: str, held: Mapping[int, Held]) -> Iterator[str]:
    """Whether the pieces do not make up the whole tensor; they overlap as replicas only."""
    boxes = {(one.offset, one.shape) for one in held.values()}
    size, whole = sum(prod(shape) for _, shape in boxes), prod(next(iter(held.values())).whole)
    if size != whole:
        yield f"the pieces of {name} on all ranks have {size} elements together, the tensor {whole}"


def _unequal(reports: Mapping[int, Report]) -> Iterator[str]:
    """Replicas with different values: the first such tensor, two of its ranks, and the number of tensors.

    Those that were rounded with other random bits are not compared.
    """
    replicas: dict[tuple[Any, ...], dict[int, str]] = {}
    for rank, report in reports.items():
        for name, one in report.held.items():
            replicas.setdefault((name, one.offset, one.shape, one.rounded and report.seed), {})[rank] = (
                one.digest
            )
    unequal = {key[0]: found for key, found in replicas.items() if len(set(found.values())) > 1}
    if unequal:
        name, found = next(iter(unequal.items()))
        counts = Counter(found.values())
        usual = max(counts, key=lambda digest: counts[digest])
        odd = next(rank for rank, digest in found.items() if digest != usual)
        one = next(rank for rank, digest in found.items() if digest == usual)
        more = f", and so do {len(unequal) - 1} more tensors" if len(unequal) > 1 else ""
        yield f"{name} differs between rank {one} and rank {odd}{more}"


def _union(keys: Iterable[Mapping[str, object]]) -> list[str]:
    """All names, in the order of the first rank that has them."""
    return list(dict.fromkeys(name for named in keys for name in named))
