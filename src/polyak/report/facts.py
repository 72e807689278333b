"""What a report says of a run: small records, made by the collectors and drawn by ``page`` and ``figures``.

Nothing here holds a file, a tensor or more points than are drawn, so a record can be kept, compared and sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from polyak._files.header import FileShare

Axis: TypeAlias = Literal["step", "epoch"]
Direction: TypeAlias = Literal["max", "min"]


@dataclass(frozen=True)
class Series:
    """Values over training steps, thinned: ``steps`` ascends, and both have the same length."""

    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """The figures of one curve: before thinning.

    jump: mean of ``|aₑ - (aₑ₋₁ + aₑ₊₁)/2|`` in the second half; None below three points there.
    best, best_at: the best value and its step; None where nothing says whether more is better.
    """

    last: float
    jump: float | None
    best: float | None
    best_at: float | None


@dataclass(frozen=True)
class Curve:
    """A metric of one kind of weights: "raw", a track's name, or "" where nothing says which."""

    weights: str
    series: Series
    summary: Summary


@dataclass(frozen=True)
class Metric:
    """One metric of a run, by kind of weights; raw first.

    direction: whether more is better; None if the name does not say.
    gap: average minus raw at the steps at which both are known; empty if there are none.
    """

    name: str
    axis: Axis
    direction: Direction | None
    curves: tuple[Curve, ...]
    gap: Series


@dataclass(frozen=True)
class Weights:
    """One set of weights in a file, as its header describes it.

    half_life, mean_age: in training steps.  unit, half_life_units: where the schedule counts in samples or
    tokens.  file: as a reader finds it; "" for averages in memory.  epoch: in its name, or else in the file.
    made_of: the checkpoints that were averaged.  rules: of an average by name, one for each pattern.
    library: that wrote the file; "" where nothing says.
    """

    file: str
    name: str
    role: str
    step: int | None
    run: str
    schedule: str | None = None
    half_life: float | None = None
    mean_age: float | None = None
    effective_samples: float | None = None
    initial_weight: float | None = None
    unit: str | None = None
    half_life_units: float | None = None
    nbytes: int | None = None
    profile: Shares | None = None
    epoch: int | None = None
    made_of: tuple[FileShare, ...] = ()
    pattern: str = ""
    rules: tuple[Weights, ...] = ()
    library: str = ""

    @property
    def called(self) -> str:
        """Its name, and of a part of an average by name the pattern."""
        return f"{self.name}, {self.pattern}" if self.pattern else self.name


@dataclass(frozen=True)
class Shares:
    """A profile in pieces: the share of the average that the steps of each piece have.

    edges: steps, ascending; piece i has the steps above edges[i] up to edges[i + 1].
    initial: the share of θ₀.  median, most: how many of the last steps have 50 % and 90 %.
    """

    edges: tuple[int, ...]
    shares: tuple[float, ...]
    initial: float
    median: float
    most: float


@dataclass(frozen=True)
class Choice:
    """What ``polyak.synthesize`` would give for one half-life.

    error: as ``Synthesis.error``.  made: the profile of the result.  target: that of the half-life itself.
    """

    half_life: float
    error: float
    noise_gain: float
    mean_age: float
    made: Shares
    target: Shares


@dataclass(frozen=True)
class LayerDistances:
    """``‖avg-θ‖ / ‖θ‖`` of layers over steps: some by name, and the spread of all.

    kind, of a layer: "norm", "expert" or "other", by its name.  low, middle, high: of all layers, the least,
    the median and the largest at each step.
    """

    steps: tuple[int, ...]
    named: Mapping[str, tuple[float | None, ...]]
    kinds: Mapping[str, str]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]
    layers: int


@dataclass(frozen=True)
class Skipped:
    """Updates up to a step in which some θ was not finite, and how many each tensor had."""

    step: int
    updates: int
    tensors: Mapping[str, int]


@dataclass(frozen=True)
class ArchiveFacts:
    """An archive: its snapshots, what can be made of them, and what they say of the layers."""

    name: str
    run: str
    steps: tuple[int, ...]
    tracks: tuple[str, ...]
    nbytes: int
    newest: tuple[Weights, ...]  # the newest snapshot of each track
    choices: tuple[Choice, ...]
    distances: LayerDistances | None
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class SweepPoint:
    """One half-life that was evaluated; ``error`` is that of the synthesis."""

    half_life: float
    metric: float
    error: float


@dataclass(frozen=True)
class SweepFacts:
    """A sweep at one training step: its trials with a metric, the raw weights' metric, the best trial."""

    name: str
    step: int
    mode: Direction
    points: tuple[SweepPoint, ...]
    raw: float | None
    best: SweepPoint | None
    failed: int
    tokens: float | None = None


@dataclass(frozen=True)
class Judged:
    """The metrics of files by one command, from ``polyak gate --record``.

    metrics: by file, as a reader finds it.  stale: files that were written again since, or are gone.
    """

    command: str
    mode: Direction
    metrics: Mapping[str, float]
    stale: tuple[str, ...] = ()


@dataclass(frozen=True)
class Logged:
    """A metric as logged at the steps or epochs of checkpoints: by the file and the name of the weights."""

    name: str
    values: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class DecisionFacts:
    """What a ``BestCheckpoint`` decided: of each decision step, metric, whether it saved, and the reason."""

    name: str
    steps: tuple[int, ...]
    metrics: tuple[float | None, ...]
    saved: tuple[bool, ...]
    reasons: tuple[str, ...]
    tracks: tuple[str, ...]


@dataclass(frozen=True)
class AdaptiveFacts:
    """Which track an ``Adaptive`` follows, after how many changes and observations."""

    file: str
    following: str
    switches: int
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """Seconds of training and of updating the average, and what the run was made with.

    seconds: of the averages' updates; train: of all else in a training step; None if nothing says.
    environment: names and values as ``polyak-run.json`` has them.
    """

    steps: float | None = None
    train: float | None = None
    seconds: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Run:
    """Everything a report says of one run. ``problems``: files that could not be read, and why."""

    name: str
    metrics: tuple[Metric, ...] = ()
    weights: tuple[Weights, ...] = ()
    archives: tuple[ArchiveFacts, ...] = ()
    sweeps: tuple[SweepFacts, ...] = ()
    judged: tuple[Judged, ...] = ()
    logged: tuple[Logged, ...] = ()
    decisions: tuple[DecisionFacts, ...] = ()
    adaptive: tuple[AdaptiveFacts, ...] = ()
    # of the whole model from each average, as trainers log it; "" if there is one average
    distances: Mapping[str, Series] = field(default_factory=dict[str, Series])
    skipped: Series | None = None  # updates skipped so far, as trainers log them
    cost: Cost = Cost()
    tokens_per_step: float | None = None
    problems: tuple[str, ...] = ()
