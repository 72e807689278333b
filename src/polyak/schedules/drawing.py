"""Drawing a profile: its weights in the terminal, and with its numbers in a notebook.

Own code, because tests compare every character, which plotext and uniplot may change between releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from polyak.schedules.decay import Array

if TYPE_CHECKING:
    from polyak.schedules.profile import Profile

Scale: TypeAlias = Literal["linear", "log"]

_EIGHTHS, _HALVES = " ▁▂▃▄▅▆▇█", " ▀█"
_DECADES = 6.0  # of a logarithmic drawing, from the greatest weight down
_LEFT_OUT = {"linear": 1e-3, "log": 10**-_DECADES}  # share of the weight before the first step drawn
EFFORT = 1 << 23  # limit on evaluations of a decay for the numbers of a profile: less than a second
_PIXELS, _TALL = 320, 60  # of the picture in a notebook
_LABEL = 9  # columns left of the axis
_DWARFS, _CUT = 3, "▲"  # a bar this many times as high as the next is cut and marked


class Bars(NamedTuple):
    """Columns of a drawing: ``heights[i]`` is the mean weight of the ``widths[i]`` steps in its column.

    first, last: the training steps at the ends.  share: of the weight, on the steps between them.
    """

    heights: Array
    widths: Array
    first: int
    last: int
    share: float


def draw(profile: Profile, width: int = 80, height: int = 10, scale: Scale = "linear") -> str:
    """Draw a profile over training steps, without the oldest steps of negligible weight.

    Args:
        profile: of an average; negative weights are drawn below the axis of a linear drawing.
        width: columns of the terminal, at least 40.
        height: lines of the bars, at least 2.
        scale: of the weights; "log" shows six decades.

    Returns:
        Lines of text, none wider than ``width``.

    Examples:
        >>> from polyak import Profile
        >>> print(draw(Profile.from_decay(0.8, steps=100), width=40, height=3))
             0.18 ┤                          ▁█
                  │                       ▁▃▆██
                0 ┤            ▁▁▁▁▁▂▃▄▄▆▇█████
                   70                       100
        weight of each training step; 99.901% of
        it is shown
    """
    columns = max(width, 40) - _LABEL - 3
    bars = binned(profile, columns, scale)
    # A short profile is drawn with several columns for each step.
    heights = np.repeat(bars.heights, columns // len(bars.heights))
    rows = (
        _logarithmic(heights, height) if scale == "log" else _linear(heights, height, _ceiling(bars.heights))
    )
    lines = [f"{label:>{_LABEL}} {'┤' if label else '│'}{row}" for label, row in rows]
    return "\n".join(
        [
            *(line.rstrip() for line in lines),
            _axis(bars, len(heights)),
            *_caption(bars, scale, max(width, 40)),
        ]
    )


def binned(profile: Profile, columns: int, scale: Scale = "linear") -> Bars:
    """The weights of a profile in columns of nearly equal numbers of steps."""
    first, last = _start(profile, _LEFT_OUT[scale]), profile.steps
    edges = np.linspace(first, last + 1, min(columns, last - first + 1) + 1).astype(np.int64)
    sums, total = np.zeros(len(edges) - 1), 0.0
    for low, window in profile.windows(last + 1):
        steps = np.arange(low, low + len(window))
        drawn = steps >= first
        places = np.searchsorted(edges, steps[drawn], side="right") - 1
        sums += np.bincount(places, window[drawn], minlength=len(sums))
        total += float(window.sum())
    return Bars(
        sums / np.diff(edges), np.diff(edges).astype(np.float64), first, last, float(sums.sum()) / total
    )


def _start(profile: Profile, left_out: float) -> int:
    """The first step to draw; earlier ones have at most this share of the absolute weight."""
    total = sum(float(np.abs(window).sum()) for _, window in profile.windows(profile.steps + 1))
    newer = 0.0
    for low, window in profile.windows(profile.steps + 1):
        sums = newer + np.cumsum(np.abs(window)[::-1])
        reached = int(np.searchsorted(sums, (1 - left_out) * total))
        if reached < len(sums):
            return low + len(window) - 1 - reached
        newer = float(sums[-1])
    return 0


def _ceiling(heights: Array) -> float:
    """The height of a drawing: a single bar that would dwarf all others, as θ₀'s does early, is cut."""
    high = float(heights.max())
    others = np.delete(heights, int(heights.argmax()))
    next_high = float(others.max()) if len(others) else 0.0
    return 1.25 * next_high if 0 < _DWARFS * next_high < high else max(high, 0.0)


def _linear(heights: Array, lines: int, high: float) -> list[tuple[str, str]]:
    """Labelled lines of bars on a linear scale up to ``high``: those above 0, then those under it."""
    low = min(float(heights.min()), 0.0)
    span = (high - low) or 1.0
    above = max(1, round(lines * high / span))
    below = max(1, lines - above) if low < 0 else 0
    unit = max(high / above, -low / below if below else 0.0) or 1.0  # weight of one line
    up = [_row(heights / unit - level, _EIGHTHS) for level in reversed(range(above))]
    up[0] = "".join(
        _CUT if tall else cell for tall, cell in zip(heights > 1.5 * unit * above, up[0], strict=True)
    )
    down = [_row(-heights / unit - level, _HALVES) for level in range(below)]
    labels = [f"{unit * above:.3g}", *[""] * (above - 2), *["0"] * (above > 1)]
    return list(
        zip([*labels, *[""] * (below - 1), *[f"{-unit * below:.3g}"] * (below > 0)], up + down, strict=True)
    )


def _logarithmic(heights: Array, lines: int) -> list[tuple[str, str]]:
    """Labelled lines of bars over the decades below the greatest weight."""
    high = max(float(heights.max()), np.finfo(float).tiny)
    decades = np.log10(np.maximum(heights / high, 10**-_DECADES)) + _DECADES
    levels = decades * (lines / _DECADES)
    rows = [_row(levels - level, _EIGHTHS) for level in reversed(range(lines))]
    labels = [f"{high:.1e}", *[""] * (lines - 2), f"{high * 10**-_DECADES:.1e}"]
    return list(zip(labels, rows, strict=True))


def _row(filled: Array, blocks: str) -> str:
    """One line of block characters, by how much of each cell is filled."""
    steps = len(blocks) - 1
    return "".join(blocks[int(n)] for n in np.rint(np.clip(filled, 0, 1) * steps))


def _axis(bars: Bars, columns: int) -> str:
    first, last = f"{bars.first:,}", f"{bars.last:,}"
    if bars.first == bars.last:
        return f"{'':{_LABEL + 2}}{first}"
    return f"{'':{_LABEL + 2}}{first}{' ' * max(1, columns - len(first) - len(last))}{last}"


def _caption(bars: Bars, scale: Scale, width: int) -> list[str]:
    how = ", logarithmic" if scale == "log" else ""
    lines = [f"weight of each training step{how}; {_percent(bars.share)} of it is shown"]
    ceiling = _ceiling(bars.heights)
    if scale == "linear" and bars.heights.max() > 1.5 * ceiling:
        place = int(bars.heights.argmax())
        lines.append(f"{_CUT} this bar is cut: its steps have {bars.heights[place] * bars.widths[place]:.1%}")
    return [part for line in lines for part in wrap(line, width)]


def _percent(share: float) -> str:
    """A share, never rounded up to 100 %."""
    return "all" if abs(1 - share) < 1e-12 else f"{np.floor(share * 1e7) / 1e5:.6g}%"


def summary(profile: Profile) -> str:
    """The numbers of a profile in one line."""
    return ", ".join(f"{name} {value}" for name, value in _numbers(profile))


def html(title: str, rows: Sequence[tuple[str, str]], profile: Profile) -> str:
    """A table for a notebook: these rows, the numbers of the profile and a picture of its weights."""
    from html import escape  # in a notebook only: its table of entities is long to import

    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in [*rows, *_numbers(profile)]
    )
    picture = _svg(binned(profile, _PIXELS // 2)) if _quick(profile) else ""
    return f"<div><b>{escape(title)}</b><table>{cells}</table>{picture}</div>"


def _numbers(profile: Profile) -> list[tuple[str, str]]:
    if not _quick(profile):
        return [("weights", "not computed: that takes long" if profile.known else "unknown")]
    return [
        ("half-life", f"{profile.half_life:,.4g} steps"),
        ("mean age", f"{profile.mean_age:,.4g} steps"),
        ("initial weight", f"{profile.initial_weight:.2g}"),
    ]


def _quick(profile: Profile) -> bool:
    return profile.known and profile.effort <= EFFORT


def _svg(bars: Bars) -> str:
    """Bars over the training steps, in the colour of the text around them."""
    heights = np.clip(bars.heights / (_ceiling(bars.heights) or 1.0), 0.0, 1.0) * _TALL
    width = _PIXELS / len(heights)
    rectangles = "".join(
        f"<rect x='{i * width:.1f}' y='{_TALL - high:.1f}' width='{0.9 * width:.1f}' height='{high:.1f}'/>"
        for i, high in enumerate(heights.tolist())
    )
    named = f"weight of each training step from {bars.first:,} to {bars.last:,}"
    return (
        f"<svg role='img' aria-label='{named}' width='{_PIXELS}' height='{_TALL}' fill='currentColor'>"
        f"<title>{named}</title>{rectangles}</svg>"
    )
