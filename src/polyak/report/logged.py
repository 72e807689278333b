"""What the log of a training says of its checkpoints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from polyak.report.checkpoints import kind_of
from polyak.report.facts import Logged, Weights
from polyak.report.logs import Column
from polyak.report.metrics import AVERAGE, RAW, by_metric
from polyak.schedules.decay import Array

_METRICS = 3  # shown beside checkpoints
_EVALUATION = re.compile(r"(^|[/_])(eval|val|valid|validation|test)([/_]|$)", re.IGNORECASE)
_Ahead: TypeAlias = dict[bool, int | None]  # ``epochs_ahead`` of logs with epochs only, and of others


class _Rows(NamedTuple):
    """A column as checkpoints meet it. counts: whether its log has epochs only, and no steps."""

    by_step: Mapping[int, float]
    by_epoch: Mapping[int, float]
    counts: bool


def logged_at(sets: Sequence[Weights], columns: Mapping[str, Column]) -> tuple[Logged, ...]:
    """What a log says at the very steps of checkpoints, or at their epochs: evaluations first, a few metrics.

    Args:
        sets: of weights.
        columns: of the log.
    """
    ours = [one for one in sets if not one.made_of]  # no trainer evaluates merged ones
    steps = {one.step for one in ours if one.step is not None}
    unmarked = _unmarked(ours)
    needed = any(one.epoch is not None and one.step is None for one in ours)
    epochs = columns.get("epoch") if needed else None
    metrics = {
        name: {kind: _rows(column, steps, epochs) for kind, column in by_weights.items()}
        for name, by_weights in by_metric(columns).items()
    }
    ahead = _ahead(ours, [rows for by_weights in metrics.values() for rows in by_weights.values()])
    found: list[Logged] = []
    for name in sorted(metrics, key=lambda name: _EVALUATION.search(name) is None):
        values = {(one.file, one.name): _value(one, metrics[name], ahead, unmarked) for one in ours}
        known = {of: value for of, value in values.items() if value is not None}
        if known:
            found.append(Logged(name, known))
    return tuple(found[:_METRICS])


def logged_value(one: Logged, weights: Weights) -> float | None:
    """The value for a set of weights, if there is one."""
    return one.values.get((weights.file, weights.name))


def epochs_ahead(files: Iterable[int], logged: Iterable[int]) -> int | None:
    """How much more than files a log counts, if only one way to count gives each file a row.

    Either may begin at 0 or at 1: Ultralytics' log begins at 1 and its files at 0; Keras does the opposite.

    Examples:
        >>> epochs_ahead([0, 1, 2], [1, 2, 3]), epochs_ahead([5, 10], range(1, 11))
        (1, 0)
        >>> epochs_ahead([4, 9], range(1, 11))  # the fourth epoch and the ninth, or the fifth and the tenth?
    """
    rows = set(logged)
    ways = (-1, 0, 1) if 0 in rows else (0, 1)  # a log without an epoch 0 does not begin there
    fitting = [way for way in ways if all(epoch + way in rows for epoch in files)]
    return fitting[0] if len(fitting) == 1 else None


def _ahead(sets: Sequence[Weights], columns: Sequence[_Rows]) -> _Ahead:
    found: _Ahead = {}
    for counts in (True, False):
        rows = {epoch for one in columns if one.counts is counts for epoch in one.by_epoch}
        files = {one.epoch for one in sets if one.epoch is not None and (counts or one.step is None)}
        found[counts] = epochs_ahead(files, rows)
    return found


def _rows(column: Column, steps: set[int], epochs: Column | None) -> _Rows:
    if column.axis == "epoch":
        return _Rows({}, dict(_whole(column.steps, column.values)), True)
    met = np.isin(column.steps, list(steps))
    by_step = dict(_whole(column.steps[met], column.values[met]))
    if epochs is None:
        return _Rows(by_step, {}, False)
    _, mine, theirs = np.intersect1d(column.steps, epochs.steps, True, return_indices=True)
    # Of several rows in an epoch the last one counts.
    return _Rows(by_step, dict(_whole(epochs.values[theirs], column.values[mine])), False)


def _whole(places: Array, values: Array) -> Iterator[tuple[int, float]]:
    """Values by step or epoch, but for those in the middle of one."""
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        if place == int(place):
            yield int(place), value


def _unmarked(sets: Sequence[Weights]) -> set[Weights]:
    """Those that a metric without a mark is of: trained ones, unless there is an average of the same moment.

    Ultralytics evaluates what it writes.
    """
    averaged = {(one.step, one.epoch) for one in sets if kind_of(one) == "average"}
    files = Counter(one.file for one in sets if one.library == "ultralytics")
    return {
        one
        for one in sets
        if files[one.file] == 1 or (kind_of(one) == "trained" and (one.step, one.epoch) not in averaged)
    }


def _value(
    one: Weights, metric: Mapping[str, _Rows], ahead: _Ahead, unmarked: Container[Weights]
) -> float | None:
    kinds = (RAW,) if kind_of(one) == "trained" else (one.name, AVERAGE)
    kinds += ("",) if one in unmarked else ()
    values = (_met(one, metric[kind], ahead) for kind in kinds if kind in metric)
    return next((value for value in values if value is not None), None)


def _met(one: Weights, rows: _Rows, ahead: _Ahead) -> float | None:
    """The value in the row of a set's step, or of its epoch where one of the two has no steps."""
    if one.step is not None and not rows.counts:
        return rows.by_step.get(one.step)
    way = ahead[rows.counts]
    return None if way is None or one.epoch is None else rows.by_epoch.get(one.epoch + way)
