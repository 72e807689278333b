"""How wrong a line is; what several seeds say together: 95 % intervals, averages paired with raw weights."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean
from typing import Any

from experiments.intervals import estimate, jump, wobble


def distance(a: list[int], b: list[int]) -> int:
    """Insertions, deletions and replacements from one line to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def numbers(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """One seed's curve in six numbers, jumps and wobble of its second half."""
    late = [row[name]["accuracy"] for row in rows if 2 * row["step"] >= rows[-1]["step"]]
    return {
        "best": max(row[name]["accuracy"] for row in rows),
        "last": rows[-1][name]["accuracy"],
        "edit": rows[-1][name]["edit"],
        "jump_mean": jump(late),
        "jump_largest": max(abs(after - before) for before, after in pairwise(late)),
        "wobble": wobble(late),
    }


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """For raw weights and each average every number, and for averages what they differ by from raw ones."""
    names = [name for name in seeds[0]["rows"][0] if name != "step"]
    found = {name: [numbers(seed["rows"], name) for seed in seeds] for name in names}
    out: dict[str, Any] = {}
    for name, mine in found.items():
        out[name] = {key: estimate([one[key] for one in mine]) for key in mine[0]}
        if name != "raw":
            pairs = list(zip(mine, found["raw"], strict=True))
            out[name]["gain"] = {key: estimate([a[key] - raw[key] for a, raw in pairs]) for key in mine[0]}
    costs = [seed["cost"] for seed in seeds]
    shares = ("step_seconds", "one_track", "all_tracks")
    return {"models": out, "cost": costs[0] | {key: fmean(cost[key] for cost in costs) for key in shares}}


def screen(found: dict[str, dict[str, Any]]) -> list[str]:
    """Best, last and wobble of every curve, by learning rate, and what the average adds in a sentence.

    Args:
        found: the ``models`` of ``summary`` at each learning rate.
    """
    lines, gains = [], []
    for schedule, models in found.items():
        lines.append(f"learning rate {schedule}")
        for name, model in models.items():
            best, last, wobble = (100 * model[key]["mean"] for key in ("best", "last", "wobble"))
            lines.append(f"  {name:<20}best {best:5.1f} %   last {last:5.1f} %   wobble {wobble:4.1f} points")
        average = next(name for name in models if name != "raw")
        gains.append(f"{100 * models[average]['gain']['last']['mean']:+.1f} points at the {schedule} rate")
    return [
        *lines,
        f"In lines read at the end, {average} differs from the raw weights by {' and '.join(gains)}.",
    ]
