"""The record of ``polyak sweep``, and what several of them say of merged weights beside trained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyak.report.facts import SweepFacts, SweepPoint
from polyak.schedules.golden_section import best_of


def sweep_facts(path: Path, name: str) -> SweepFacts:
    """The trials of a sweep.

    Args:
        path: of a ``sweep.json``.
        name: how the report calls it.

    Raises:
        ValueError: it is no record of a sweep.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        trials: list[dict[str, Any]] = fields["trials"]
        points = [
            SweepPoint(float(one["half_life"]), float(one["metric"]), float(one["error"] or 0.0))
            for one in trials
            if one["metric"] is not None
        ]
        of_raw: dict[str, Any] = fields.get("raw") or {"metric": None}
        raw: float | None = of_raw["metric"]
        mode = fields["mode"]
        if mode not in ("max", "min"):
            raise ValueError(f"mode {mode!r} is neither max nor min")
        best = best_of({one.half_life: one.metric for one in points}, mode)
        return SweepFacts(
            name=name,
            step=int(fields["step"]),
            mode=mode,
            points=tuple(sorted(points, key=lambda one: one.half_life)),
            raw=None if raw is None else float(raw),
            best=next((one for one in points if one.half_life == best), None),
            failed=len(trials) - len(points),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no record of a sweep: {error!r}") from error


def error_bar(point: SweepPoint, raw: float | None) -> float | None:
    """How far the metric may be off for the synthesis, to first order: ``error·|metric - raw|``.

    The error is a share of the way from the raw weights to the average; a metric that moved so far along
    that way moves by this share of it along the rest. None without the raw weights' metric.

    Examples:
        >>> error_bar(SweepPoint(100, 0.9, 0.02), 0.8)
        0.002
    """
    return None if raw is None else round(point.error * abs(point.metric - raw), 12)
