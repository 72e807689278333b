"""Which half-life is best, found after the training by evaluating averages made from its archive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polyak.archive.archive import Archive
from polyak.archive.synthesis import synthesizable, synthesize
from polyak.errors import CheckpointError
from polyak.schedules import HalfLife
from polyak.schedules.decay import check_whole
from polyak.select.evaluate import EvalCommand, SweepRecord, Trial, alone_in
from polyak.select.golden_section import Mode, check_mode, grid, refined

RECORD, BEST = "sweep.json", "best.safetensors"
_WEIGHTS = "trial.safetensors"


@dataclass(frozen=True)
class Sweep:
    """What to look for, and where.

    Args:
        archive: folder that ``polyak.Archive`` wrote.
        command: gives the metric of a file of weights.
        out: folder for the record and the best average.
        mode: "max" if a larger metric is better, or "min".
        at: the training step to stand at; by default the newest snapshot's.
        points: on the logarithmic grid over the half-lives that can be synthesised.
        refine: golden sections after it, around the best.
        max_error: largest expected error of a synthesised average, as a share of its distance from the raw
            weights; half-lives above it are left out.

    Raises:
        ConfigError: an argument is outside its rule.
    """

    archive: Path
    command: EvalCommand
    out: Path
    mode: Mode = "max"
    at: int | None = None
    points: int = 7
    refine: int = 6
    max_error: float = 0.02

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_whole("points", self.points, 1)
        check_whole("refine", self.refine, 0)


def sweep(asked: Sweep, watch: Callable[[int, int], None] = lambda done, total: None) -> SweepRecord:
    """Evaluate half-lives, each at most once however often this is interrupted and called again.

    A trial is in ``out/sweep.json`` as soon as it is done. One that failed costs its point only, and is
    tried again by the next call. The best average is in ``out/best.safetensors`` at the end.

    Args:
        asked: what to look for.
        watch: called with the number of half-lives done, and of all.

    Returns:
        The record; its ``best`` is None when every evaluation failed.

    Raises:
        ConfigError: ``at`` lies outside the run.
        CheckpointError: no half-life can be synthesised, a file is damaged or cannot be written, or the
            record is of another run, step or command.
    """
    archive = Archive(asked.archive)
    at = archive.steps[-1] if asked.at is None else asked.at
    half_lives = _grid(archive, at, asked)
    with alone_in(asked.out):
        record = SweepRecord(asked.out / RECORD, archive.run, at, asked.command.line, asked.mode)
        metrics: dict[float, float | None] = {}
        try:
            total = len(half_lives) + asked.refine
            while (half_life := _next(half_lives, metrics, total, asked.mode)) is not None:
                trial = record.measured(half_life)
                if trial is None:
                    trial = _tried(archive, half_life, at, asked)
                    record.add(trial)
                metrics[trial.half_life] = trial.metric
                watch(len(metrics), total)
        finally:
            with suppress(OSError):
                (asked.out / _WEIGHTS).unlink()
        if record.best is not None:
            target = HalfLife(steps=record.best.half_life)
            synthesize(archive, target, at, max_error=asked.max_error, out=asked.out / BEST)
    return record


def _grid(archive: Archive, at: int, asked: Sweep) -> list[float]:
    near = [row.half_life for row in synthesizable(archive, at) if row.error <= asked.max_error]
    if not near:
        raise CheckpointError(
            f"no half-life can be synthesised from {asked.archive} at step {at} to {asked.max_error:.1%}; "
            "polyak synthesize lists what can, a larger max_error allows more."
        )
    return grid(near[0], near[-1], asked.points)


def _next(
    half_lives: list[float], metrics: dict[float, float | None], total: int, mode: Mode
) -> float | None:
    """What to look at after what was looked at, so that a repeated sweep takes the same way."""
    if len(metrics) < len(half_lives):
        return half_lives[len(metrics)]
    return refined(metrics, mode) if len(metrics) < total else None


def _tried(archive: Archive, half_life: float, at: int, asked: Sweep) -> Trial:
    weights = asked.out / _WEIGHTS
    try:
        made = synthesize(archive, HalfLife(steps=half_life), at, max_error=asked.max_error, out=weights)
    except CheckpointError as error:
        return Trial(half_life, None, f"it cannot be synthesised: {error}")
    metric, failure, seconds = asked.command.measure(weights)
    return Trial(half_life, metric, failure, made.error, made.noise_gain, seconds)
