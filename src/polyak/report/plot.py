"""What a plot is: lines, bands, dots and rules, which the page and the figures both draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Style: TypeAlias = Literal["solid", "dashed", "dotted"]
Numbers: TypeAlias = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """A line with its label at its end; ink names a colour of the page."""

    label: str
    ink: str
    x: Numbers
    y: Numbers
    style: Style = "solid"
    width: float = 2.0


@dataclass(frozen=True)
class Band:
    """An area between two lines."""

    ink: str
    x: Numbers
    low: Numbers
    high: Numbers


@dataclass(frozen=True)
class Dot:
    """A point, with a bar from low to high if these are given."""

    label: str
    ink: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Rule:
    """A horizontal line with its label."""

    label: str
    ink: str
    y: float


@dataclass(frozen=True)
class Frame:
    """One position of a slider: the heights of a staircase, of another for comparison, and the numbers."""

    half_life: float
    error: float
    noise_gain: float
    mean_age: float
    initial: float
    median: float
    most: float
    made: tuple[float, ...]
    target: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """One plot. ``name`` names files; ``edges`` and ``frames`` belong to profiles."""

    name: str
    title: str
    alt: str
    note: str
    x: str
    y: str
    lines: tuple[Line, ...] = ()
    bands: tuple[Band, ...] = ()
    dots: tuple[Dot, ...] = ()
    rules: tuple[Rule, ...] = ()
    log_x: bool = False
    percent_y: bool = False
    domain: tuple[float, float] | None = None
    edges: tuple[int, ...] = ()
    frames: tuple[Frame, ...] = ()
    start: int = 0
