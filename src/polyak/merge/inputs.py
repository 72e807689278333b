"""Opening and comparing the checkpoints to average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from polyak._dtypes import is_float
from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.header import KEY, Header
from polyak._files.open import SET
from polyak._files.source import Where
from polyak._foreign.open_any import open_weights
from polyak._foreign.parts import Role
from polyak._foreign.recognize import Step, recognise, step_in_name
from polyak.errors import CheckpointError
from polyak.schedules import Profile

_LISTED = 20  # lines of differences shown
_NAMED = 6  # tensors named of those a file lacks


class MergeInput(NamedTuple):
    """An open checkpoint and its description, as far as it is known.

    weights: the tensors of one set.
    role: raw or average; "unknown" if not stated.
    header: of the weights, if known.
    step: the training step and its source.
    """

    weights: Checkpoint
    role: Role
    header: Header | None
    step: Step | None

    @property
    def profile(self) -> Profile | None:
        """The weight of each point of the trajectory; None if unknown."""
        if self.header is not None and self.header.profile is not None:
            return self.header.profile
        return Profile.raw(self.step.number) if self.role == "raw" and self.step is not None else None


def open_inputs(paths: Sequence[Where], files: ExitStack, part: str | None) -> list[MergeInput]:
    """Open the checkpoints, one set of weights from each; ``files`` will close them."""
    inputs = [_part_of(files.enter_context(open_weights(path)), part) for path in paths]
    opened = [one.weights for one in inputs]
    lines = [*_missing(opened), *_differing(opened)]
    if lines:
        more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        listed = "\n  ".join(lines[:_LISTED] + more)
        raise CheckpointError(
            f"the checkpoints do not hold the same tensors; nothing was written.\n  {listed}"
        )
    return inputs


def is_real(tensor: LazyTensor) -> bool:
    """Whether a tensor holds real floats, whose averages can be rounded to another dtype."""
    return is_float(tensor.dtype) and tensor.dtype.kind != "c"


def _part_of(weights: Checkpoint, part: str | None) -> MergeInput:
    """One set of weights of a file, which may contain several."""
    _refuse_fragments(weights)
    found = recognise(weights)
    sets = [one for one in found.models if one.tensors]
    chosen = [one for one in sets if part is None or one.is_called(part)]
    if not sets:
        what = "no tensors" if not weights.tensors else "no weights of a model"
        raise CheckpointError(f"{weights.where} holds {what}, so there is nothing to average.")
    if len(chosen) != 1:
        listed = "; ".join(f"{one.name} ({one.role}, under {one.path!r})" for one in sets)
        why = "one is needed" if part is None else f"{part!r} is {len(chosen)} of them"
        raise CheckpointError(
            f"{weights.where} holds these sets of weights: {listed}; {why}. Choose one with part= (--part)."
        )
    [one] = chosen
    said = "header" if weights.format == "safetensors" else "state of the average"
    step = None if found.step is None else Step(found.step, found.step_key or said)
    return MergeInput(
        weights=replace(weights, tensors=one.tensors),
        role=one.role,
        header=found.header_of(one),
        step=step or step_in_name(weights.where),
    )


def _refuse_fragments(weights: Checkpoint) -> None:
    if SET in weights.metadata:
        raise CheckpointError(
            f"{weights.where} is one of several shards, a part of the tensors: give their index instead."
        )
    if KEY in weights.metadata and Header.from_metadata(weights.metadata, weights.where).role == "resumable":
        raise CheckpointError(
            f"{weights.where} holds a whole training state, not one set of weights: load it with ema.load "
            "and save the average alone, without resumable=True."
        )


def _missing(opened: Sequence[Checkpoint]) -> Iterator[str]:
    everything = {name: None for weights in opened for name in weights.tensors}
    for weights in opened:
        lacking = [name for name in everything if name not in weights.tensors]
        if lacking:
            more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
            yield f"{weights.where} lacks {', '.join(lacking[:_NAMED])}{more}"


def _differing(opened: Sequence[Checkpoint]) -> Iterator[str]:
    first, *others = opened
    for name, tensor in first.tensors.items():
        for other in others:
            found = other.tensors.get(name, tensor)
            if found.shape != tensor.shape or _kind(found) != _kind(tensor):
                yield (
                    f"{name} is {tensor.dtype} {list(tensor.shape)} in {first.where}, "
                    f"{found.dtype} {list(found.shape)} in {other.where}"
                )
                break


def _kind(tensor: LazyTensor) -> tuple[bool, bool]:
    return is_float(tensor.dtype), is_real(tensor)
