"""The log of a ``BestCheckpoint``."""

from __future__ import annotations

from pathlib import Path

from polyak.report.facts import DecisionFacts
from polyak.select.best_checkpoint import BestCheckpoint

ENDING = ".safetensors.jsonl"


def decision_facts(path: Path, name: str) -> DecisionFacts:
    """What was decided, oldest first.

    Args:
        path: of the log.
        name: how the report calls it.

    Raises:
        CheckpointError: a line is damaged.
    """
    decisions = BestCheckpoint(path.with_name(path.name.removesuffix(".jsonl"))).decisions
    return DecisionFacts(
        name=name,
        steps=tuple(one.step for one in decisions),
        metrics=tuple(one.metric for one in decisions),
        saved=tuple(one.decision == "save" for one in decisions),
        reasons=tuple(one.reason for one in decisions),
        tracks=tuple(one.track for one in decisions),
    )
