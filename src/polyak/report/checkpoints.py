"""The checkpoints of a run: which are trained and which are merged, where each belongs, and how each did."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from polyak._foreign.recognize import epoch_in_name
from polyak.report.facts import Axis, Judged, Run, Weights
from polyak.select.judged import Judgement

# "several": a file with several sets of weights, of which a command may have evaluated any.
Kind: TypeAlias = Literal["trained", "average", "merged", "several"]
_NEWEST = 5  # checkpoints of the average that is proposed
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


def by_one_count(sets: Sequence[Weights]) -> tuple[Weights, ...]:
    """Without the epochs in files where names have epochs too: one may count from 0 and the other from 1."""
    stored = [one.epoch is not None and not one.made_of and epoch_in_name(one.file) is None for one in sets]
    if all(inside or one.epoch is None for inside, one in zip(stored, sets, strict=True)):
        return tuple(sets)
    return tuple([replace(one, epoch=None) if i else one for i, one in zip(stored, sets, strict=True)])


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
