"""Raw weights and their average over epochs: in the terminal and as a PNG; needs the ``plot`` extra."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

# At the top, so that a run without it ends before its training. Not pyplot, which needs a display.
from matplotlib import figure as matplotlib_figure

from polyak._files.write import atomic
from polyak.report.curve import limits, over_steps
from polyak.report.facts import Series


def drawing(
    raw: Sequence[float],
    average: Sequence[float],
    width: int = 80,
    height: int = 10,
    ascii_only: bool = False,
) -> str:
    """Two curves of shares in 0 … 1 over epochs 1, 2, …, as text: ``over_steps`` in percent.

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
    epochs = tuple(range(1, len(raw) + 1))
    curves = {"raw": Series(epochs, tuple(raw)), "average": Series(epochs, tuple(average))}
    return over_steps(curves, width, height, ascii_only, label=" {:.2%}".format, title="accuracy: ")


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
