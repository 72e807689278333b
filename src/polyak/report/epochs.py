"""Raw weights and their average over epochs: in the terminal and as a PNG; needs the ``plot`` extra."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# At the top, so that a run without it ends before its training. Not pyplot, which needs a display.
from matplotlib import figure as matplotlib_figure

from polyak._files.write import atomic
from polyak.report.curve import limits

_UNICODE, _ASCII = "○●·┤│└─", "o@.+|+-"


def drawing(
    raw: Sequence[float],
    average: Sequence[float],
    width: int = 80,
    height: int = 10,
    ascii_only: bool = False,
) -> str:
    """Two curves of shares in 0 … 1 over epochs 1, 2, …, as text.

    Args:
        raw: one value per epoch, at least one.
        average: as many.
        width: columns of the terminal, at least 40.
        height: lines of the plot, at least 3.
        ascii_only: for a terminal without Unicode.

    Returns:
        Lines of text, none wider than ``width``.

    Examples:
        >>> print(drawing([0.5, 0.9, 0.7], [0.6, 0.9, 0.9], width=40, height=5))
         90.00%┤              ··●··············●
               │         ·····      ········
               │   ········                 ···○
               │●·····
         50.00%┤○·
               └────────────────────────────────
                1  accuracy: ○ raw, ● average  3
    """
    marks = _ASCII if ascii_only else _UNICODE
    low, high = limits([raw, average])
    labels = {0: f"{high:.2%}", height - 1: f"{low:.2%}"}
    margin = max(map(len, labels.values())) + 1
    room = width - margin - 1
    ends = [round(x) for x in np.linspace(0, room - 1, len(raw)).tolist()]
    canvas = [[" "] * room for _ in range(height)]

    def put(xs: Sequence[int], values: Sequence[float], mark: str) -> None:
        for x, value in zip(xs, values, strict=True):
            if low <= value <= high:
                canvas[round((high - value) / ((high - low) or 1) * (height - 1))][x] = mark

    for curve in (raw, average):
        put(range(room), np.interp(range(room), ends, curve).tolist(), marks[2])
    put(ends, raw, marks[0])
    put(ends, average, marks[1])  # on top
    sides = [f"{labels.get(y, ''):>{margin}}{marks[3] if y in labels else marks[4]}" for y in range(height)]
    last = f"{len(raw)}"
    indent = " " * margin
    legend = f"accuracy: {marks[0]} raw, {marks[1]} average".center(room - len(last) - 1)
    return "\n".join(
        [
            *((side + "".join(line)).rstrip() for side, line in zip(sides, canvas, strict=True)),
            f"{indent}{marks[5]}{marks[6] * room}",
            f"{indent} 1{legend}{last}" if len(raw) > 1 else f"{indent} 1{legend}".rstrip(),
        ]
    )


def picture(
    panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | os.PathLike[str]
) -> None:
    """Draw pairs of curves as a PNG, one panel each.

    Args:
        panels: by the name of the metric, its value at each epoch for raw weights and for the average.
        path: of the file.

    Raises:
        CheckpointError: the file cannot be written.
    """
    figure: Any = matplotlib_figure.Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axes, (name, (raw, average)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        numbers = range(1, len(raw) + 1)
        axes.plot(numbers, raw, "o-", color="tab:gray", markersize=4, linewidth=1, label="raw weights")
        axes.plot(numbers, average, "o-", color="tab:blue", markersize=4, linewidth=2, label="average")
        low, high = limits([raw, average])
        margin = 0.05 * (high - low) or 0.01
        axes.set(xlabel="epoch", title=f"{name} on the test images", ylim=(low - margin, high + margin))
        axes.grid(visible=True, alpha=0.25)
        axes.legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
