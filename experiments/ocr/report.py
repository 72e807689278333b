"""The text lines' results as a report of the harness: PaddlePaddle ran them before there was one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import harness
from experiments.harness import Better, Claim, Data, Row
from experiments.intervals import jump, moment, wobble

RESULTS = Path(__file__).parent / "results"
RATES = {"constant": "constant rate", "cosine": "cosine to zero"}
SIDES = {"raw": "raw weights", "Warmup(0.999)": "Warmup(0.999)"}


@dataclass(frozen=True)
class Settings:
    """Training steps of a batch of lines; the rest is in the results."""

    steps: int
    batch: int


def numbers(seed: dict[str, Any], rate: str) -> dict[str, Any]:
    """One seed at one rate; accuracies in percent, the moment in steps."""
    found: dict[str, Any] = {}
    steps = [row["step"] for row in seed["rows"]]
    raw = [100 * row["raw"]["accuracy"] for row in seed["rows"]]
    for side in SIDES:
        curve = [100 * row[side]["accuracy"] for row in seed["rows"]]
        late = [value for step, value in zip(steps, curve, strict=True) if 2 * step >= steps[-1]]
        found |= {f"{rate} {side} curve": curve, f"{rate} {side} accuracy": curve[-1]}
        found |= {f"{rate} {side} jump": jump(late), f"{rate} {side} wobble": wobble(late)}
        found[f"{rate} {side} moment"] = moment(curve, max(raw), steps)
    return found


def row(metric: str, unit: str, number: str, better: Better, rate: str) -> Row:
    """Raw weights beside their average; the accuracy at the constant rate is the headline."""
    sides = [(f"{rate} {side} {number}", what) for side, what in SIDES.items()]
    headline = (rate, number) == ("constant", "accuracy")
    return Row(f"{metric}, {RATES[rate]}", unit, better, sides[0], sides[1], headline)


ROWS = tuple(
    row(metric, unit, number, better, rate)
    for rate in RATES
    for metric, unit, number, better in (
        ("lines read right at the end", "points", "accuracy", "higher"),
        ("when the raw weights' best is reached", "steps", "moment", "lower"),
        ("jump between evaluations", "points", "jump", "lower"),
        ("wobble between evaluations", "points", "wobble", "lower"),
    )
)


CLAIM = Claim(
    name="ocr",
    claim="At a constant learning rate the average of the weights reads more lines of text right.",
    published="an article on PaddleOCR's SVTR: line accuracy +1.2 points",
    gain=1.2,
    data=Data("synthetic lines of Chinese text", "the lines are made here; fonts: OFL, GPL, Arphic"),
    rows=ROWS,
    curves={f"{rate} {side} curve": "percent of lines" for rate in RATES for side in SIDES},
)


def report() -> dict[str, Any]:
    """The newest committed results at both learning rates, as one report."""
    found = {rate: json.loads(max(RESULTS.glob(f"full-{rate}-*.json")).read_text()) for rate in RATES}
    runs: dict[str, dict[str, Any]] = {}
    for rate, one in found.items():
        for seed in one["seeds"]:
            kept = runs.setdefault(str(seed["seed"]), {"seconds": 0.0})
            kept |= numbers(seed, rate)
            kept["seconds"] += one["config"]["training"]["steps"] * seed["cost"]["step_seconds"]
    training = found["constant"]["config"]["training"]
    facts = {key: found["constant"][key] for key in ("machine", "date")}
    return harness.report(CLAIM, "full", Settings(training["steps"], training["batch"]), runs) | facts
