"""The report that a trainer's callback writes at the end of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polyak._files.header import Header
from polyak.report.averages import weights_of
from polyak.report.collect import collect
from polyak.report.environment import write_environment
from polyak.report.write import write_page

NAME = "report.html"


def report_training(folder: Path, averages: Sequence[Header], facts: Mapping[str, str]) -> Path:
    """Write ``report.html`` and ``polyak-run.json`` into the folder of a run.

    Args:
        folder: with what the trainer logged; created if missing.
        averages: in memory, shown before those in files.
        facts: from ``environment``.

    Returns:
        The page.

    Raises:
        CheckpointError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_environment(folder, facts)
    [run] = collect([folder])
    write_page(
        [replace(run, weights=(*(weights_of(one, "") for one in averages), *run.weights))], folder / NAME
    )
    return folder / NAME
