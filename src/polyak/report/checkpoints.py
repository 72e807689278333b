"""The checkpoints of a run: which are trained and which are merged, where each belongs, and how each did."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from polyak.report.facts import Axis, Judged, Logged, Run, Weights
from polyak.report.logs import Column
from polyak.report.metrics import AVERAGE, RAW
from polyak.select.judged import Judgement

# "several": a file with several sets of weights, of which a command may have evaluated any.
Kind: TypeAlias = Literal["trained", "average", "merged", "several"]
_LOGGED = 3  # metrics shown beside checkpoints
_NEWEST = 5  # checkpoints of the average that is proposed
_EVALUATION = re.compile(r"(^|[/_])(eval|val|valid|validation|test)([/_]|$)", re.IGNORECASE)
_EVALUATE = '--eval "python eval.py {weights}" --record .'


class Place(NamedTuple):
    """A step or an epoch; steps before epochs, so that places can be compared."""

    by_epoch: bool
    at: int

    @property
    def axis(self) -> Axis:
        """What is counted."""
        return "epoch" if self.by_epoch else "step"


class Checkpoint(NamedTuple):
    """A file of a run, as a command evaluates it. place: None if nothing says."""

    file: str
    kind: Kind
    place: Place | None
    sets: tuple[Weights, ...]


def kind_of(one: Weights) -> Kind:
    """What a set of weights is. Those of which nothing says that they are averaged count as trained."""
    return "merged" if one.made_of else "average" if one.role == "average" else "trained"


def checkpoints_of(run: Run) -> list[Checkpoint]:
    """The files with weights, in the order of their steps or epochs, those without a place last."""
    files: dict[str, list[Weights]] = {}
    for one in run.weights:
        if one.file:
            files.setdefault(one.file, []).append(one)
    found = [
        Checkpoint(file, kind_of(sets[0]) if len(sets) == 1 else "several", _place(sets[0]), tuple(sets))
        for file, sets in files.items()
    ]
    return sorted(found, key=lambda one: (one.place is None, one.place or (False, 0), one.kind, one.file))


def _place(one: Weights) -> Place | None:
    if one.step is not None:
        return Place(False, one.step)
    return None if one.epoch is None else Place(True, one.epoch)


def is_series(found: Sequence[Checkpoint]) -> bool:
    """Whether files are checkpoints of a run, and not only the average that it kept."""
    trained = [one for one in found if one.kind in ("trained", "several") and one.place is not None]
    return len(trained) > 1 or any(one.kind == "merged" for one in found)


def judged_of(
    records: Sequence[tuple[str, Sequence[Judgement]]], fingerprint: Callable[[str], str | None]
) -> tuple[Judged, ...]:
    """The newest metric of each file, by the command that gave it.

    Args:
        records: the name of each record, and its lines.
        fingerprint: of a file by its name; None if it is gone.
    """
    newest: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    for name, lines in records:
        for line in lines:
            files = newest.setdefault((line.command, line.mode), {})
            for one in line.files:
                path = posixpath.normpath(posixpath.join(posixpath.dirname(name), one.file))
                files[path] = one.metric, one.fingerprint
    found: list[Judged] = []
    for (command, mode), files in newest.items():
        stale = tuple([file for file, (_, known) in files.items() if fingerprint(file) != known])
        metrics = {file: metric for file, (metric, _) in files.items() if file not in stale}
        found.append(Judged(command, "min" if mode == "min" else "max", metrics, stale))
    return tuple(found)


def logged_at(sets: Sequence[Weights], metrics: Mapping[str, Mapping[str, Column]]) -> tuple[Logged, ...]:
    """What a log says at the very steps of checkpoints: evaluations first, a few metrics.

    Epochs are not compared: some trainers count them from 0 in one place and from 1 in another.

    Args:
        sets: of weights.
        metrics: from ``by_metric``.
    """
    steps = {one.step for one in sets if one.step is not None}
    found: list[Logged] = []
    for name in sorted(metrics, key=lambda name: _EVALUATION.search(name) is None):
        values = {kind: _values_at(steps, column) for kind, column in metrics[name].items()}
        if any(values.values()):
            found.append(Logged(name, values))
    return tuple(found[:_LOGGED])


def _values_at(steps: set[int], column: Column) -> dict[int, float]:
    pairs = zip(column.steps.tolist(), column.values.tolist(), strict=True)
    return {} if column.axis == "epoch" else {int(step): value for step, value in pairs if step in steps}


def logged_value(one: Logged, weights: Weights) -> float | None:
    """The value for a set of weights, if there is one; no trainer evaluates merged ones."""
    kinds = {"trained": (RAW, ""), "average": (weights.name, AVERAGE)}.get(kind_of(weights), ())
    step = -1 if weights.step is None else weights.step
    return next((one.values[kind][step] for kind in kinds if step in one.values.get(kind, {})), None)


def commands(run: Run) -> list[str]:
    """What to run in the folder of a run for the metrics that are missing; none if all is judged."""
    found = [one for one in checkpoints_of(run) if one.place is not None]
    trained = [one for one in found if one.kind in ("trained", "several")]
    merged = [one for one in checkpoints_of(run) if one.kind == "merged"]
    known = {file for one in run.judged for file in one.metrics}
    if not merged and len(trained) > 1:
        files, part = [one.file for one in trained[-_NEWEST:]], ""
        if trained[-1].kind == "several":
            part = f" --part {shlex.quote(trained[-1].sets[-1].name)}"
        first = f"polyak average {_quoted(*files)}{part} -o average.safetensors"
        return [first, _gate("average.safetensors", trained[-1].file)]
    return [_gate(one.file, _beside(one, trained)) for one in merged if one.file not in known]


def _beside(one: Checkpoint, trained: Sequence[Checkpoint]) -> str:
    """The trained checkpoint that a merge is compared with: the newest that it can be made of."""
    place = one.place
    upto = [other for other in trained if place is None or other.place is None or other.place <= place]
    return (upto or [*trained])[-1].file if trained else "CHECKPOINT"


def _gate(new: str, best: str) -> str:
    return f"polyak gate {_quoted(new, best)} {_EVALUATE}"


def _quoted(*files: str) -> str:
    return " ".join(shlex.quote(f"./{file}" if file.startswith("-") else file) for file in files)
