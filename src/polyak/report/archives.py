"""An archive: what can be made of it, how far each layer was from its average, and what was skipped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from polyak.archive.archive import Archive
from polyak.archive.snapshots import Snapshot
from polyak.archive.synthesis import Preview, preview
from polyak.report.averages import weights_of
from polyak.report.facts import ArchiveFacts, Choice, LayerDistances, Skipped, Weights
from polyak.report.shares import edges_of, shares_of

CHOICES = 41  # half-lives that the slider steps through
_NAMED = 8  # layers drawn by name
_NORM = re.compile(r"norm|(^|[._])(bn|ln)\d*([._]|$)", re.IGNORECASE)
_EXPERT = re.compile(r"expert|(^|[._])moe([._]|$)", re.IGNORECASE)


def archive_facts(folder: Path, name: str, choices: int = CHOICES) -> ArchiveFacts:
    """The facts of an archive, from the headers of its files.

    Args:
        folder: that ``polyak.Archive`` wrote.
        name: how the report calls it.
        choices: half-lives on a logarithmic scale from a thousandth of the run to all of it; those of the
            archive's own averages are added.

    Raises:
        CheckpointError: it holds no snapshots, or a damaged one.
    """
    archive = Archive(folder)
    snapshots = [one for one in archive.snapshots if one.number]
    tracks = list(dict.fromkeys(one.header.track for one in snapshots))
    of_first = [one for one in snapshots if one.header.track == tracks[0]] if tracks else []
    newest = tuple(_newest(snapshots, track, name) for track in tracks)
    step = max((one.step for one in snapshots), default=0)
    grid = {*half_lives(step, choices), *(float(f"{one.half_life:.4g}") for one in newest if one.half_life)}
    return ArchiveFacts(
        name=name,
        run=archive.run,
        steps=tuple(archive.steps),
        tracks=tuple(tracks),
        nbytes=sum(one.path.stat().st_size for one in archive.snapshots),
        newest=newest,
        choices=choices_of(archive, step, sorted(grid)) if snapshots else (),
        distances=distances_of(of_first),
        skipped=tuple(skips_of(of_first)),
    )


def _newest(snapshots: Sequence[Snapshot], track: str, name: str) -> Weights:
    last = [one for one in snapshots if one.header.track == track][-1]
    return weights_of(last.header, f"{name}/{last.path.name}", last.path.stat().st_size)


def half_lives(steps: int, count: int = CHOICES) -> list[float]:
    """Half-lives from a thousandth of the run to all of it, to four digits.

    Examples:
        >>> half_lives(4000, 3)
        [4.0, 126.5, 4000.0]
    """
    grid = np.geomspace(max(1.0, steps / 1000), max(2.0, steps), count)
    return [float(f"{h:.4g}") for h in grid.tolist()]


def choices_of(archive: Archive, step: int, grid: Sequence[float]) -> tuple[Choice, ...]:
    """What ``polyak.synthesize`` would give for each half-life; none where a schedule is unknown."""
    known = all(one.header.profile is not None and one.header.profile.known for one in archive.snapshots)
    rows = preview(archive, grid) if known else []
    edges = edges_of(step)
    return tuple(_choice(row, edges) for row in rows)


def _choice(row: Preview, edges: list[int]) -> Choice:
    return Choice(
        half_life=row.half_life,
        error=row.error,
        noise_gain=row.noise_gain,
        mean_age=row.profile.mean_age,
        made=shares_of(row.profile, edges),
        target=shares_of(row.target, edges),
    )


def kind_of(layer: str) -> str:
    """What a parameter is, by its name: "norm", "expert" or "other".

    Examples:
        >>> [kind_of(name) for name in ("layers.0.norm1.weight", "moe.experts.3.up", "fc.bias")]
        ['norm', 'expert', 'other']
    """
    return "norm" if _NORM.search(layer) else "expert" if _EXPERT.search(layer) else "other"


def distances_of(snapshots: Sequence[Snapshot]) -> LayerDistances | None:
    """The layers' distances from their averages; None where no snapshot has them."""
    measured = [(one.step, one.state.distances) for one in snapshots if one.state.distances]
    if not measured:
        return None
    rows = [sorted(distances.values()) for _, distances in measured]
    named = _apart(measured)
    return LayerDistances(
        steps=tuple(step for step, _ in measured),
        named={name: tuple(distances.get(name) for _, distances in measured) for name in named},
        kinds={name: kind_of(name) for name in named},
        low=tuple(row[0] for row in rows),
        middle=tuple(float(f"{np.median(row):.5g}") for row in rows),
        high=tuple(row[-1] for row in rows),
        layers=len(rows[-1]),
    )


def _apart(measured: Sequence[tuple[int, Mapping[str, float]]]) -> list[str]:
    """The layers farthest from their averages at the end, with a norm and an expert among them if any."""
    last = measured[-1][1]
    order = sorted(last, key=lambda name: -last[name])
    chosen = order[:_NAMED]
    for kind in ("norm", "expert"):
        first = next((name for name in order if kind_of(name) == kind), None)
        if first is not None and first not in chosen:
            chosen.append(first)
    return chosen


def skips_of(snapshots: Sequence[Snapshot]) -> list[Skipped]:
    """The snapshots since which more updates were skipped."""
    found: list[Skipped] = []
    for one in snapshots:
        if one.state.skipped > (found[-1].updates if found else 0):
            found.append(Skipped(one.step, one.state.skipped, dict(one.state.skipped_tensors)))
    return found
