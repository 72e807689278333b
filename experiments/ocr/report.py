"""The text lines' results as reports of the harness: PaddlePaddle ran them before there was one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import harness
from experiments.harness import Better, Claim, Data, Row
from experiments.intervals import jump, moment, wobble

RESULTS = Path(__file__).parent / "results"
SIDES = {"raw": "raw weights", "Warmup(0.999)": "Warmup(0.999)"}


@dataclass(frozen=True)
class Settings:
    """Training steps of a batch of lines under a learning rate; the rest is in the results."""

    steps: int
    batch: int
    schedule: str


def numbers(seed: dict[str, Any]) -> dict[str, Any]:
    """One seed; accuracies in percent, the moment in steps, jump and wobble of the second half."""
    found: dict[str, Any] = {}
    steps = [row["step"] for row in seed["rows"]]
    raw = [100 * row["raw"]["accuracy"] for row in seed["rows"]]
    for side in SIDES:
        curve = [100 * row[side]["accuracy"] for row in seed["rows"]]
        late = [value for step, value in zip(steps, curve, strict=True) if 2 * step >= steps[-1]]
        found |= {f"{side} curve": curve, f"{side} accuracy": curve[-1]}
        found |= {f"{side} jump": jump(late), f"{side} wobble": wobble(late)}
        found[f"{side} moment"] = moment(curve, max(raw), steps)
    return found


def row(metric: str, unit: str, number: str, better: Better) -> Row:
    """Raw weights beside their average; the accuracy is the headline."""
    sides = [(f"{side} {number}", what) for side, what in SIDES.items()]
    return Row(metric, unit, better, sides[0], sides[1], headline=number == "accuracy")


ROWS = (
    row("lines read right at the end", "points", "accuracy", "higher"),
    row("when the raw weights' best is reached", "steps", "moment", "lower"),
    row("jump between evaluations", "points", "jump", "lower"),
    row("wobble between evaluations", "points", "wobble", "lower"),
)


def claim(name: str, text: str) -> Claim:
    return Claim(
        name=name,
        claim=text,
        published="an article on PaddleOCR's SVTR: line accuracy +1.2 points",
        gain=1.2,
        data=Data("synthetic lines of Chinese text", "the lines are made here; fonts: OFL, GPL, Arphic"),
        rows=ROWS,
        curves={f"{side} curve": "percent of lines, at 13 moments" for side in SIDES},
    )


CLAIMS = {
    "constant": claim("ocr", "At a constant learning rate an average reads more lines of text right."),
    "cosine": claim("ocr-cosine", "Along a cosine to zero an average reads more lines of text right."),
}


def reports() -> list[dict[str, Any]]:
    """The newest committed results at each learning rate."""
    return [report(claim, max(RESULTS.glob(f"full-{rate}-*.json"))) for rate, claim in CLAIMS.items()]


def report(claim: Claim, path: Path) -> dict[str, Any]:
    """The results of a file as a report."""
    found = json.loads(path.read_text())
    settings = Settings(**{key: found["config"]["training"][key] for key in ("steps", "batch", "schedule")})
    runs = {
        str(seed["seed"]): numbers(seed) | {"seconds": settings.steps * seed["cost"]["step_seconds"]}
        for seed in found["seeds"]
    }
    facts = {key: found[key] for key in ("machine", "date")}
    return harness.report(claim, "full", settings, runs) | facts
