"""The checkpoints to average: opened, compared, and asked for their steps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple

from polyak.checkpoints.dtypes import is_float
from polyak.checkpoints.foreign import recognise
from polyak.checkpoints.formats import open_weights
from polyak.checkpoints.formats.safetensors import SET
from polyak.checkpoints.layout import SUMS
from polyak.checkpoints.note import valid_note
from polyak.checkpoints.schema import KEY, Header
from polyak.checkpoints.source import Where
from polyak.checkpoints.weights import Slot, Weights
from polyak.errors import CheckpointError
from polyak.rules import Profile

_LISTED = 20  # lines of differences shown
_NAMED = 6  # tensors named of those a file lacks


class Input(NamedTuple):
    """An open checkpoint and, where it is known, what it is."""

    weights: Weights
    header: Header | None


def open_inputs(paths: Sequence[Where], files: ExitStack, part: str | None) -> list[Input]:
    """Open checkpoints to be averaged, one set of weights of each; ``files`` will close them.

    Raises:
        CheckpointError: one cannot be read, is a resumable state, or does not hold the part or holds
            several; or they do not hold the same tensors.
    """
    inputs = [_part_of(files.enter_context(open_weights(path)), part) for path in paths]
    opened = [one.weights for one in inputs]
    for weights in opened:
        if not weights.slots:
            raise CheckpointError(f"{weights.where} holds no tensors, so there is nothing to average.")
    lines = [*_missing(opened), *_differing(opened)]
    if lines:
        more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        listed = "\n  ".join(lines[:_LISTED] + more)
        raise CheckpointError(
            f"the checkpoints do not hold the same tensors; nothing was written.\n  {listed}"
        )
    return inputs


def at_steps(inputs: Sequence[Input]) -> list[Input]:
    """The same, each with a header that says its profile; without one, a file is raw at the step in its name.

    Raises:
        CheckpointError: one does not say its step.
    """
    return [
        one
        if one.header is not None and one.header.profile is not None
        else Input(one.weights, _at_step_in_name(one.weights))
        for one in inputs
    ]


def profiles_of(inputs: Sequence[Input]) -> list[Profile]:
    """The profiles of inputs that have them."""
    headers = [one.header for one in inputs]
    return [header.profile for header in headers if header is not None and header.profile is not None]


def is_real(slot: Slot) -> bool:
    """Whether a tensor holds real floats: averages of these can be rounded to another dtype."""
    return is_float(slot.dtype) and slot.dtype.kind != "c"


def _part_of(weights: Weights, part: str | None) -> Input:
    """One set of weights; a pickle may hold several, and other things."""
    if weights.format not in ("pytorch", "paddle"):
        return Input(weights, _header_of(weights))
    sets = [one for one in recognise(weights).parts if one.role != "optimizer"]
    chosen = [one for one in sets if part in (None, one.name, one.role)]
    if len(chosen) != 1:
        listed = "; ".join(f"{one.name} ({one.role}, under {one.path!r})" for one in sets) or "none"
        asked = "one is needed" if part is None else f"{part!r} is {len(chosen)} of them"
        raise CheckpointError(
            f"{weights.where} holds these sets of weights: {listed}; {asked}. Say which with part= (--part)."
        )
    return Input(replace(weights, slots=chosen[0].tensors), chosen[0].header)


def _header_of(weights: Weights) -> Header | None:
    if SET in weights.metadata:
        raise CheckpointError(
            f"{weights.where} is one of several shards, a part of the tensors: give their index instead."
        )
    if KEY not in weights.metadata:
        return valid_note(weights)
    header = Header.from_metadata(weights.metadata, weights.where)
    if header.role == "resumable":
        raise CheckpointError(
            f"{weights.where} holds a whole training state, not one set of weights: load it with ema.load "
            "and save the average alone, without resumable=True."
        )
    # Written anew by another program, the tensors may no longer be those that the header speaks of.
    return header if SUMS in weights.metadata else None


def _missing(opened: Sequence[Weights]) -> Iterator[str]:
    everything = {name: None for weights in opened for name in weights.slots}
    for weights in opened:
        lacking = [name for name in everything if name not in weights.slots]
        if lacking:
            more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
            yield f"{weights.where} lacks {', '.join(lacking[:_NAMED])}{more}"


def _differing(opened: Sequence[Weights]) -> Iterator[str]:
    first, *others = opened
    for name, slot in first.slots.items():
        for other in others:
            found = other.slots.get(name, slot)
            if found.shape != slot.shape or _kind(found) != _kind(slot):
                yield (
                    f"{name} is {slot.dtype} {list(slot.shape)} in {first.where}, "
                    f"{found.dtype} {list(found.shape)} in {other.where}"
                )
                break


def _kind(slot: Slot) -> tuple[bool, bool]:
    return is_float(slot.dtype), is_real(slot)


def _at_step_in_name(weights: Weights) -> Header:
    path = PurePath(weights.where)
    for part in (path.name, path.parent.name):
        numbers = re.findall(r"\d+", part)
        if numbers:
            step = int(numbers[-1])
            return Header("raw", step, None, Profile.raw(step), "raw", "")
    raise CheckpointError(
        f"{weights.where} does not say at which training step it was written: put the step into its name, "
        "like checkpoint-5000.safetensors, or give a weight for each file."
    )
