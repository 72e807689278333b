"""Choosing one of several averages by their metrics, while they train.

Legend: mₖ the metric of track k at this observation, mean m that of all tracks, sₖ the score of track k
(larger is better, whatever the mode), s the smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, SupportsFloat

from polyak.errors import ConfigError
from polyak.schedules.decay import Config, SeveralDecays, check
from polyak.schedules.golden_section import grid
from polyak.schedules.metric import Mode, as_number, check_min_gain, check_mode
from polyak.schedules.warmup import Debiased


@dataclass(frozen=True)
class Adaptive(SeveralDecays):
    """Several half-lives side by side, and the rule that chooses the best of them by validation.

    The tracks are ``Debiased(2^(-1/h))`` for h evenly spaced on a logarithmic scale, named ``h30``,
    ``h94.87`` and so on. ``ema.observe`` evaluates them and decides which is followed:

    ``sₖ ← s·sₖ + (1-s)·(mₖ - mean m)``, the first observation being its own score; the best score is followed
    if it beats that of the followed track by more than ``min_gain``.

    All tracks are evaluated on the same data, so their differences are far less noisy than the metric. Before
    the first observation the middle track is followed, the shorter of two.

    Args:
        low: the shortest half-life in training steps, > 0.
        high: the longest, > ``low``.
        points: the number of tracks, ≥ 2; each costs the memory of one average.
        mode: "max" if a larger metric is better, or "min".
        smoothing: s in [0, 1); 0 judges by the last observation alone.
        min_gain: how much better another track must be, in units of the metric, ≥ 0.

    Raises:
        ConfigError: an argument is outside its range, or two half-lives round to the same name.

    Examples:
        >>> import torch, polyak
        >>> ema = polyak.EMA(torch.nn.Linear(2, 1), Adaptive(low=30, high=3000, points=3))
        >>> ema.following
        'h300'
        >>> ema.observe({"h30": 0.93, "h300": 0.91, "h3000": 0.12})
        0.93
        >>> ema.following
        'h30'

    Source: polyak's own; the documentation's page "An average that chooses its half-life" has the reasons.
    """

    low: float
    high: float
    points: int = 5
    mode: Mode = "max"
    smoothing: float = 0.5
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        check("low", self.low, "a half-life must be positive", self.low > 0)
        rule = f"the longest half-life must be finite and above low={self.low}"
        check("high", self.high, rule, self.low < self.high < math.inf)
        whole = type(self.points) is int and self.points >= 2
        check("points", self.points, "must be a whole number, at least 2: one half-life is no choice", whole)
        check_mode(self.mode)
        check("smoothing", self.smoothing, "must lie in [0, 1)", 0 <= self.smoothing < 1)
        check_min_gain(self.min_gain)
        distinct = len(self.decays) == self.points
        check("points", self.points, "half-lives this close to each other have the same name", distinct)

    @cached_property
    def decays(self) -> dict[str, Debiased]:
        """The schedule of each track, by name, shortest half-life first."""
        return {f"h{h:.4g}": Debiased(2 ** (-1 / h)) for h in grid(self.low, self.high, self.points)}

    @property
    def middle(self) -> str:
        """The track that is followed before the first observation."""
        return list(self.decays)[(self.points - 1) // 2]

    def to_config(self) -> Config:
        """The arguments, as JSON has them."""
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """What was observed so far.

    following: the track that is followed.
    scores: s by track; empty before the first observation.
    switches: how often another track was followed than before.
    """

    following: str
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    switches: int = 0


def judged(rule: Adaptive, choice: Choice, metrics: Mapping[str, float]) -> Choice:
    """The choice after one more observation; see ``Adaptive`` for the rule.

    Args:
        rule: with its smoothing and least gain.
        choice: so far.
        metrics: finite, of each track.
    """
    scores = smoothed(rule.smoothing, choice.scores, advantages(metrics, rule.mode))
    best = max(rule.decays, key=scores.__getitem__)  # of equals the shortest
    if scores[best] - scores[choice.following] > rule.min_gain:
        return Choice(best, scores, choice.switches + 1)
    return Choice(choice.following, scores, choice.switches)


def advantages(metrics: Mapping[str, float], mode: Mode) -> dict[str, float]:
    """``mₖ - mean m``, with the opposite sign where a smaller metric is better."""
    mean = math.fsum(metrics.values()) / len(metrics)
    return {name: value - mean if mode == "max" else mean - value for name, value in metrics.items()}


def smoothed(s: float, scores: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """``sₖ ← s·sₖ + (1-s)·newₖ``; the first observation is its own score."""
    return {name: s * scores.get(name, value) + (1 - s) * value for name, value in new.items()}


def metrics_of_each(metrics: Mapping[str, SupportsFloat], tracks: Iterable[str]) -> dict[str, float]:
    """One finite number for each track, in their order.

    Raises:
        ConfigError: a track is missing or unknown, or its metric is not a finite number.
    """
    names = list(tracks)
    if missing := [name for name in names if name not in metrics]:
        raise ConfigError(f"metrics: {', '.join(missing)} missing; observe all of {', '.join(names)}.")
    if unknown := [name for name in metrics if name not in names]:
        raise ConfigError(f"metrics: no track is named {unknown[0]!r}; there are {', '.join(names)}.")
    values = {name: as_number(f"metrics[{name!r}]", metrics[name]) for name in names}
    for name, value in values.items():
        rule = "must be finite; nothing was decided, and the followed track stays the same"
        check(f"metrics[{name!r}]", value, rule, math.isfinite(value))
    return values


def to_state(rule: Adaptive, choice: Choice) -> Config:
    """The rule and what it observed, as JSON has them."""
    return {"rule": rule.to_config(), **asdict(choice)}


def from_state(state: Mapping[str, Any]) -> tuple[Adaptive, Choice]:
    """The inverse of ``to_state``.

    Raises:
        ConfigError: the choice is not one among the rule's tracks.
    """
    rule, following, switches = Adaptive(**state["rule"]), state["following"], state["switches"]
    check("following", following, f"must be one of {', '.join(rule.decays)}", following in rule.decays)
    whole = type(switches) is int and switches >= 0
    check("switches", switches, "must be a whole number, at least 0", whole)
    scores = metrics_of_each(state["scores"], rule.decays) if state["scores"] else {}
    return rule, Choice(following, scores, switches)
