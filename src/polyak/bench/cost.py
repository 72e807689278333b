"""The minimal cost of an update, from bytes and bandwidth.

An update does two operations per 12 bytes, so its time is limited by memory and not by arithmetic.
Quantities are per parameter unless stated otherwise; bandwidth is in bytes per second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STORED = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "split": 3, "compensated": 8}
LIMIT = 12  # bytes of one float32 lerp: θ read, the average read and written
BUDGET = 0.01  # the share of the training time that an average may take
ROOM = 0.5  # the share of the free memory that averages may take


def moved(live: int, stored: int, tracks: int = 1) -> int:
    """Bytes that one update moves: θ is read once, each average is read and written.

    ``live + 2·stored·tracks``: bytes of θ, and of one average with its low part, as in ``STORED``.

    Examples:
        >>> moved(4, 4), moved(4, 4, tracks=3), moved(2, 4), moved(2, 2)
        (12, 28, 10, 6)
        >>> moved(2, STORED["split"]), moved(4, STORED["compensated"])
        (8, 20)
    """
    return live + 2 * stored * tracks


def moved_separately(live: int, stored: int, tracks: int = 1) -> int:
    """Bytes that the same averages move in separate EMAs, each of which reads θ again.

    ``(live + 2·stored)·tracks``

    Examples:
        >>> moved_separately(4, 4, tracks=3)
        36
    """
    return tracks * moved(live, stored)


def seconds(parameters: float, each: float, bandwidth: float, cards: int = 1) -> float:
    """Seconds of one update of a model that is sharded over cards.

    ``parameters·each / (cards·bandwidth)``, each the bytes per parameter from ``moved``.

    Examples:
        >>> round(1e3 * seconds(1e12, moved(2, 4), bandwidth=3e12, cards=1000), 2)
        3.33
    """
    return parameters * each / (cards * bandwidth)


def share(update: float, step: float, every: int = 1) -> float:
    """The share of the training time spent on the average.

    ``(update/every) / (step + update/every)``, in seconds of one update and of a training step without it.

    Examples:
        >>> share(0.01, 0.09), round(share(0.01, 0.09, every=10), 3)
        (0.1, 0.011)
    """
    return update / (every * step + update)


def cadence(update: float, step: float, budget: float = BUDGET) -> int:
    """The smallest ``every`` that keeps the average within a share of the training time.

    ``k ≥ (update/step)·(1-budget)/budget``

    Examples:
        >>> cadence(0.0001, 0.09), cadence(0.01, 0.09)
        (1, 11)
    """
    return max(1, math.ceil(update / step * (1 - budget) / budget - 1e-9))


@dataclass(frozen=True)
class Facts:
    """A model on a machine.

    parameters: number that are averaged.  live: bytes of one.  tracks: number of averages.
    dtype: their storage when measured.
    update: seconds measured.  step: seconds of a training step, None if it cannot be run.
    bandwidth: bytes per second measured.  free: bytes of memory left before the averages, None if unknown.
    device: "cpu", "cuda" …  engine: ``metrics()["engine"]``.
    """

    parameters: int
    live: int
    tracks: int
    dtype: str
    update: float
    step: float | None
    bandwidth: float
    free: int | None
    device: str
    engine: str


@dataclass(frozen=True)
class Advice:
    """Arguments for ``polyak.EMA``, and the reason for each; ``engine`` stays "auto"."""

    dtype: str
    every: int
    device: str
    reasons: tuple[str, ...]


def recommend(facts: Facts) -> Advice:
    """Arguments of ``polyak.EMA`` for this model on this machine.

    float32 on the model's device at every step, unless free memory or the time of a step forbid it.

    Examples:
        >>> large = Facts(10**9, 2, 1, "float32", 0.01, 0.1, 1e12, 6 * 10**9, "cuda", "triton")
        >>> advice = recommend(large)
        >>> advice.dtype, advice.every, advice.device
        ('split', 8, 'cuda')
    """
    dtype, device, why_memory = _storage(facts)
    every, why_every = _every(facts, dtype)
    return Advice(dtype, every, device, (_engine(facts), why_memory, why_every))


def first_engine(description: str) -> str:
    """The name of the first engine in ``metrics()["engine"]``.

    Examples:
        >>> first_engine("native; foreach (w: torch.int8 on cpu into torch.int8 on cpu)")
        'native'
    """
    return description.partition(" ")[0].rstrip(";")


def _engine(facts: Facts) -> str:
    if "requested" in facts.engine:
        return f"measured with {first_engine(facts.engine)}; auto takes the fastest there is"
    if "not built" in facts.engine or "not installed" in facts.engine:
        return f"it took {facts.engine}"
    return f"it took {first_engine(facts.engine)}, the fastest there is for these tensors"


def _storage(facts: Facts) -> tuple[str, str, str]:
    """Dtype and device: the most exact that fits in the memory left."""
    count = facts.parameters * facts.tracks
    size = f"{_bytes(STORED['float32'] * count)} of averages in float32"
    if facts.free is None:
        return "float32", facts.device, f"{size}; the free memory is unknown"
    left = f"{_bytes(facts.free)} free"
    for dtype in ("float32", "split", "bfloat16"):
        if STORED[dtype] * count <= ROOM * facts.free:
            why = f"{size}, {left}" if dtype == "float32" else f"{size} would fill more than half of {left}"
            return dtype, facts.device, why
    where = "cpu" if facts.device != "cpu" else facts.device
    more = "keep them on the host" if where != facts.device else "average fewer tensors: include="
    return ("float32" if where != facts.device else "bfloat16"), where, f"{size}, only {left}: {more}"


def _every(facts: Facts, dtype: str) -> tuple[int, str]:
    if facts.step is None:
        return 1, "the time of a training step is unknown: let the factory return a step too"
    scale = moved(facts.live, STORED[dtype], facts.tracks) / moved(
        facts.live, STORED[facts.dtype], facts.tracks
    )
    update = facts.update * scale
    every = cadence(update, facts.step)
    part = f"an update is {share(update, facts.step):.1%} of a training step"
    if every == 1:
        return 1, f"{part}, within {BUDGET:.0%}"
    return every, f"{part}; decays compose, so the half-life stays, and {BUDGET:.0%} is left"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
