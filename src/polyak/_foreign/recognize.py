"""From the structure of a file to what it is. Nothing is guessed from values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY
from polyak._files.layout import SUMS
from polyak._files.open import header_of
from polyak._foreign import folders, keras, layouts, training
from polyak._foreign.averagers import state_of_an_averager
from polyak._foreign.inside import divided
from polyak._foreign.keys import PLAIN, by_keys
from polyak._foreign.lightning import lightning
from polyak._foreign.note import has_note, read_note
from polyak._foreign.parts import (
    Part,
    Recognised,
    Role,
    is_weights,
    tensors_in,
    tree_of,
    unwrapped,
)
from polyak._foreign.states import resumable
from polyak._foreign.steps import step_inside
from polyak.errors import CheckpointError

_IN_HDF5 = "the tensors are in HDF5, which Keras reads"
NOTED = "a note of polyak's beside the file says so"
_REWRITTEN = "a header of polyak's, but another program wrote the file anew: what it says may be true no more"
_LIBRARIES = (training.timm, lightning, training.ultralytics, training.edm2, layouts.by_layout)
_BESIDE = (folders.transformers, folders.diffusers, folders.accelerate, folders.paddle)


def recognise(weights: Checkpoint) -> Recognised:
    """What an open checkpoint is, by its structure.

    Args:
        weights: from ``open_weights``.

    Returns:
        The library that wrote it and the sets of weights in it, averages first. A file that no library
        is known to write has the library "" and parts whose role is "unknown", or told by their key.

    Raises:
        CheckpointError: the file is malformed, or its header contradicts its content.

    Examples:
        >>> import os, tempfile, torch
        >>> from polyak._foreign.open_any import open_weights
        >>> path = os.path.join(tempfile.mkdtemp(), "swa.pt")
        >>> averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1))
        >>> torch.save(averaged.state_dict(), path)
        >>> with open_weights(path) as weights:
        ...     found = recognise(weights)
        >>> found.library, [(part.role, sorted(part.tensors)) for part in found.parts]
        ('swa_utils', [('average', ['bias', 'weight'])])
    """
    if weights.format == "keras":
        return _keras(weights)
    return _own(weights) if is_own(weights) else _as_noted(_by_structure(weights), weights)


def _by_structure(weights: Checkpoint) -> Recognised:
    tree = tree_of(weights)
    found = next((f for library in _LIBRARIES if (f := library(tree, weights.where)) is not None), None)
    found = found or state_of_an_averager(tree, "")
    for look_beside in _BESIDE:
        found = found or look_beside(weights)
    found = found or by_keys(tree) or _plain(weights, tree)
    step = None if is_weights(tree) else step_inside(tree)
    if step is None and found.step is None:
        step = folders.step_beside(weights.where)
    if step is not None:
        found = replace(found, step=step.number, step_key=step.source)
    return _ordered(found)


def is_own(weights: Checkpoint) -> bool:
    """Whether polyak wrote a file and no other program wrote it anew, which its header would not tell."""
    return KEY in weights.metadata and SUMS in weights.metadata


def _keras(weights: Checkpoint) -> Recognised:
    """A model file of Keras, by what polyak's callback said in it."""
    headers = keras.marked(weights)
    notes = (_IN_HDF5,) if headers else (_IN_HDF5, PLAIN)
    if not headers:
        return Recognised("keras", (Part("weights", "unknown", "model.weights.h5", {}),), notes=notes)
    places = ("model.weights.h5", *["polyak_average"] * len(headers[1:]))
    parts = tuple(
        Part(header.track, cast("Role", header.role), place, {}, header=header)
        for header, place in zip(headers, places, strict=True)
    )
    return _ordered(Recognised("keras", parts, headers[0].step, notes=notes))


def _as_noted(found: Recognised, weights: Checkpoint) -> Recognised:
    """With what polyak's note beside the file says, where it is a note of these bytes and of one model."""
    models = [one for one in found.parts if one.role != "optimizer"]
    if len(models) != 1 or not has_note(weights):
        return found
    try:
        header = read_note(weights)
    except CheckpointError as error:
        return replace(found, notes=(*found.notes, str(error)))
    noted = replace(models[0], name=header.track, role=cast("Role", header.role), header=header)
    return replace(
        found,
        library=found.library or "polyak",
        parts=(noted, *(one for one in found.parts if one.role == "optimizer")),
        step=header.step,
        notes=(*(note for note in found.notes if note != PLAIN), NOTED),
    )


def _own(weights: Checkpoint) -> Recognised:
    header = header_of(weights)
    if header.role == "resumable":
        return resumable(weights, header)
    part = Part(header.role, header.role, "", dict(weights.slots), header=header)
    return Recognised("polyak", (part,), header.step, None, header.decay)


def _plain(weights: Checkpoint, tree: Any) -> Recognised:
    note = _REWRITTEN if KEY in weights.metadata else PLAIN
    tensors = tensors_in(tree) if is_weights(tree) else dict(weights.slots)
    whole = unwrapped(Part("weights", "unknown", "", tensors))
    found = None if has_note(weights) else divided(whole)
    if found is not None and any(one.role == "average" for one in found.parts):
        return found
    return replace(found or Recognised("", (whole,)), notes=(note,))


def _ordered(found: Recognised) -> Recognised:
    """Averages first, and no two parts of the same name; names are fit for those of files."""
    rank: Mapping[Role, int] = {"average": 0, "raw": 1, "unknown": 2, "optimizer": 3}
    parts = sorted(found.parts, key=lambda one: rank[one.role])
    names = Counter(_plain_text(one.name) for one in parts)
    return replace(found, parts=tuple(replace(one, name=_unique(one, names)) for one in parts))


def _unique(one: Part, names: Counter[str]) -> str:
    """A name that several parts share is followed by the key of each."""
    name = _plain_text(one.name)
    return name if names[name] == 1 else f"{name}-{_plain_text(one.path)}"


def _plain_text(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", key)
