"""The search for the best half-life after training, on averages synthesised from an archive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from polyak.archive.archive import Archive
from polyak.archive.synthesis import synthesizable, synthesize
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import HalfLife
from polyak.schedules.decay import check_integer
from polyak.schedules.golden_section import grid, refined
from polyak.schedules.metric import Mode, check_mode
from polyak.select.evaluate import EvalCommand, RawTrial, SweepRecord, Trial, alone_in

RECORD, BEST = "sweep.json", "best.safetensors"
_WEIGHTS = "trial.safetensors"
# Called with each trial, the number done and the total.
Report: TypeAlias = Callable[[Trial | RawTrial, int, int], object]


@dataclass(frozen=True)
class Sweep:
    """A search for the best half-life."""

    archive: Path  # folder that ``polyak.Archive`` wrote
    command: EvalCommand  # evaluates a file of weights
    out: Path  # folder for the record and the best average
    mode: Mode = "max"  # "max" if a larger metric is better, or "min"
    at: int | None = None  # the training step of the averages; by default that of the newest snapshot
    points: int = 7  # number of half-lives on the logarithmic grid over those that can be synthesised
    refine: int = 6  # number of golden-section steps after it, around the best
    # largest expected error of a synthesised average, as a share of its distance from the raw weights;
    # half-lives above it are left out
    max_error: float = 0.02
    raw: Path | None = None  # a file of the raw weights at that step, to evaluate beside the averages

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_integer("points", self.points, 1)
        check_integer("refine", self.refine, 0)
        if self.raw is not None and not self.raw.exists():
            raise ConfigError(f"{self.raw} does not exist: raw must be a file of raw weights.")


def sweep(options: Sweep, report: Report = lambda trial, done, total: None) -> SweepRecord:
    """Evaluate half-lives, each at most once even if interrupted and called again.

    A trial is in ``out/sweep.json`` as soon as it is done. A failed one is tried again by the next call.
    The best average is in ``out/best.safetensors`` at the end.

    Args:
        options: the search.
        report: called with each trial, the number of them done and the total.

    Returns:
        The record; its ``best`` is None if every evaluation failed.
    """
    archive = Archive(options.archive)
    at = archive.steps[-1] if options.at is None else options.at
    half_lives = _grid(archive, at, options)
    with alone_in(options.out):
        record = SweepRecord(options.out / RECORD, archive.run, at, options.command.line, options.mode)
        metrics: dict[float, float | None] = {}
        try:
            count = len(half_lives) + options.refine
            raws = 0
            if options.raw is not None:
                raws = 1
                report(_evaluate_raw(record, options.raw, options.command), raws, raws + count)
            while (half_life := _next(half_lives, metrics, count, options.mode)) is not None:
                trial = record.measured(half_life)
                if trial is None:
                    trial = _evaluate(archive, half_life, at, options)
                    record.add(trial)
                metrics[trial.half_life] = trial.metric
                report(trial, raws + len(metrics), raws + count)
        finally:
            with suppress(OSError):
                (options.out / _WEIGHTS).unlink()
        if record.best is not None:
            target = HalfLife(steps=record.best.half_life)
            synthesize(archive, target, at, max_error=options.max_error, out=options.out / BEST)
    return record


def _grid(archive: Archive, at: int, options: Sweep) -> list[float]:
    near = [row.half_life for row in synthesizable(archive, at) if row.error <= options.max_error]
    if not near:
        raise CheckpointError(
            f"no half-life can be synthesised from {options.archive} at step {at} to "
            f"{options.max_error:.1%}; polyak synthesize lists what can; a larger max_error allows more."
        )
    return grid(near[0], near[-1], options.points)


def _next(
    half_lives: list[float], metrics: dict[float, float | None], total: int, mode: Mode
) -> float | None:
    """The half-life to evaluate next, from the metrics alone, so that a resumed sweep continues the same."""
    if len(metrics) < len(half_lives):
        return half_lives[len(metrics)]
    return refined(metrics, mode) if len(metrics) < total else None


def _evaluate_raw(record: SweepRecord, raw: Path, command: EvalCommand) -> RawTrial:
    trial = record.raw
    if trial is None or trial.metric is None or trial.file != str(raw):
        trial = RawTrial(str(raw), *command.measure(raw))
        record.add_raw(trial)
    return trial


def _evaluate(archive: Archive, half_life: float, at: int, options: Sweep) -> Trial:
    weights = options.out / _WEIGHTS
    try:
        made = synthesize(archive, HalfLife(steps=half_life), at, max_error=options.max_error, out=weights)
    except CheckpointError as error:
        return Trial(half_life, None, f"it cannot be synthesised: {error}")
    metric, failure, seconds = options.command.measure(weights)
    return Trial(half_life, metric, failure, made.error, made.noise_gain, seconds)
