"""Columns of a log as metrics of raw and averaged weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from polyak.report.facts import Curve, Direction, Metric, Series, Summary
from polyak.report.logs import Column
from polyak.report.thin import thinned
from polyak.schedules.decay import Array

RAW, AVERAGE = "raw", "average"
# Columns that describe the run and not the model.
_ABOUT = re.compile(
    r"(^|/)(lr|learning_rate|lr-\w+|time|seconds|runtime|grad_norm|epoch|hp_metric|total_flos|"
    r"num_input_tokens_seen|num_tokens|tokens|samples)(/|$|-)|_runtime$|_per_second$|^ema/|^lr/|^seconds/"
)
_LESS = re.compile(r"loss|error|perplexity|ppl|(?<![a-z])(r?mse|mae|fid|wer|cer|nll|bp[bc])(?![a-z])", re.I)
_MORE = re.compile(
    r"acc|auc|f1|map|bleu|rouge|score|iou|dice|precision|recall|psnr|ssim|reward|top[15]|(?<![a-z])r2", re.I
)


class _Name(NamedTuple):
    metric: str
    weights: str  # "raw", a track, or "" where the name does not say


def named(column: str) -> _Name:
    """The metric and the weights that a column's name means.

    Examples:
        >>> named("raw/val_loss"), named("eval_ema=long/loss"), named("ema_accuracy")
        (_Name(metric='val_loss', weights='raw'), _Name(metric='eval_loss', weights='long'),
         _Name(metric='accuracy', weights='average'))
    """
    if found := re.fullmatch(r"(.*?)(?:raw/|ema=([^/]+)/)(.+)", column):
        return _Name(found[1] + found[3], found[2] or RAW)
    if found := re.fullmatch(r"((?:.*/)?)ema_(.+)", column):
        return _Name(found[1] + found[2], AVERAGE)
    return _Name(column, "")


def metrics_of(columns: Mapping[str, Column]) -> list[Metric]:
    """The metrics among a log's columns, those of both raw and averaged weights first."""
    found = [_metric(name, by_weights) for name, by_weights in by_metric(columns).items()]
    return sorted(found, key=lambda metric: (len(metric.curves) < 2, metric.axis == "epoch"))


def by_metric(columns: Mapping[str, Column]) -> dict[str, dict[str, Column]]:
    """The columns of a log that are metrics, by metric and kind of weights, raw first.

    A name without a mark means the raw weights beside a column ``ema_…``, and the average beside one that is
    marked ``raw/``: the demo and the trainers log them so.
    """
    grouped: dict[str, dict[str, Column]] = {}
    for name, column in columns.items():
        if not _ABOUT.search(name) and not _ABOUT.search(named(name).metric):
            metric, weights = named(name)
            grouped.setdefault(metric, {})[weights] = column
    return {metric: _told(by_weights) for metric, by_weights in grouped.items()}


def _told(by_weights: dict[str, Column]) -> dict[str, Column]:
    """Give the column without a mark the weights that its neighbours imply, and put the raw first."""
    if "" in by_weights and len(by_weights) > 1:
        by_weights[AVERAGE if RAW in by_weights else RAW] = by_weights.pop("")
    return dict(sorted(by_weights.items(), key=lambda item: item[0] != RAW))


def direction_of(metric: str) -> Direction | None:
    """Whether more of a metric is better, by its name; None if the name does not say."""
    return "min" if _LESS.search(metric) else "max" if _MORE.search(metric) else None


def _metric(name: str, by_weights: Mapping[str, Column]) -> Metric:
    direction = direction_of(name)
    curves = [_curve(weights, column, direction) for weights, column in by_weights.items()]
    axis = "epoch" if all(column.axis == "epoch" for column in by_weights.values()) else "step"
    averages = [column for weights, column in by_weights.items() if weights != RAW]
    gap = _gap(by_weights[RAW], averages[0]) if RAW in by_weights and averages else Series((), ())
    return Metric(name, axis, direction, tuple(curves), gap)


def _gap(raw: Column, average: Column) -> Series:
    """Average minus raw at the steps at which both are known."""
    steps, left, right = np.intersect1d(raw.steps, average.steps, return_indices=True)
    return thinned(steps, average.values[right] - raw.values[left])


def _curve(weights: str, column: Column, direction: Direction | None) -> Curve:
    steps, values = column.steps, column.values
    best = None if direction is None else int(values.argmin() if direction == "min" else values.argmax())
    summary = Summary(
        last=float(values[-1]),
        jump=jump(values),
        best=None if best is None else float(values[best]),
        best_at=None if best is None else float(steps[best]),
    )
    return Curve(weights, thinned(steps, values), summary)


def jump(values: Array) -> float | None:
    """Mean of ``|aₑ - (aₑ₋₁ + aₑ₊₁)/2|`` in the second half: how far a curve jumps, free of its rise.

    Examples:
        >>> jump(np.array([0, 1, 2, 3, 4, 5.0])), jump(np.array([0, 0, 0, 1, 0, 1.0]))
        (0.0, 1.0)
    """
    late = values[(len(values) - 1) // 2 :]
    if len(late) < 3:
        return None
    return float(np.abs(late[1:-1] - (late[:-2] + late[2:]) / 2).mean())
