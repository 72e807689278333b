"""From the structure of a file to what it is. Nothing is guessed from values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from polyak.checkpoints.foreign import folders, training
from polyak.checkpoints.foreign.averagers import state_of_an_averager
from polyak.checkpoints.foreign.parts import (
    Part,
    Recognised,
    Role,
    is_state_dict,
    is_weights,
    mapping,
    part,
    tensors_in,
    tree_of,
    unwrapped,
    whole,
)
from polyak.checkpoints.foreign.states import completed, resumable
from polyak.checkpoints.layout import SUMS
from polyak.checkpoints.note import has_note, read_note
from polyak.checkpoints.read import header_of
from polyak.checkpoints.schema import KEY
from polyak.checkpoints.weights import Weights
from polyak.errors import CheckpointError

NOTED = "a note of polyak's beside the file says so"
PLAIN = "plain weights: nothing says whether they are averaged"
_REWRITTEN = "a header of polyak's, but another program wrote the file anew: what it says may be true no more"
_RAW = ("model", "state_dict", "model_state_dict", "module", "net", "raw")
_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?|shadow)(_|$)|_ema$|^ema", re.IGNORECASE)


def recognise(weights: Weights) -> Recognised:
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
        >>> from polyak.checkpoints.formats import open_weights
        >>> path = os.path.join(tempfile.mkdtemp(), "swa.pt")
        >>> averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1))
        >>> torch.save(averaged.state_dict(), path)
        >>> with open_weights(path) as weights:
        ...     found = recognise(weights)
        >>> found.library, [(part.role, sorted(part.tensors)) for part in found.parts]
        ('swa_utils', [('average', ['bias', 'weight'])])
    """
    return _own(weights) if is_own(weights) else _as_noted(_by_structure(weights), weights)


def _by_structure(weights: Weights) -> Recognised:
    tree = tree_of(weights)
    for recogniser in (training.timm, training.lightning, training.ultralytics, training.edm2):
        found = recogniser(tree, weights.where)
        if found is not None:
            return _ordered(found)
    found = state_of_an_averager(tree, "")
    for look_beside in (
        folders.transformers,
        folders.diffusers,
        folders.accelerate,
        folders.paddle_detection,
    ):
        found = found or look_beside(weights)
    return _ordered(found or _by_keys(tree) or _plain(weights, tree))


def is_own(weights: Weights) -> bool:
    """Whether polyak wrote a file and no other program wrote it anew, which its header would not tell."""
    return KEY in weights.metadata and SUMS in weights.metadata


def _as_noted(found: Recognised, weights: Weights) -> Recognised:
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


def _own(weights: Weights) -> Recognised:
    header = header_of(weights)
    if header.role == "resumable":
        return resumable(weights, header)
    part = Part(header.role, header.role, "", dict(weights.slots), header=header)
    return Recognised("polyak", (part,), header.step, None, header.decay)


def _by_keys(tree: Any) -> Recognised | None:
    """A training script's own dict: each entry by what it is, or else by what its key calls it."""
    state = mapping(tree)
    inner: list[Recognised] = []
    parts: list[Part] = []
    for key, value in state.items():
        found = state_of_an_averager(value, str(key))
        if found is not None:
            inner.append(found)
        elif is_weights(value):
            parts.append(_called(str(key), value))
    if (not inner and not parts) or is_state_dict(tree):
        return None
    parts += [one for found in inner for one in found.parts]
    averaged = any(one.role == "average" for one in parts)
    parts = [_beside_an_average(one) if averaged else one for one in parts]
    raw = [one for one in parts if one.role == "raw"]
    if len(raw) == 1:
        parts = [completed(one, raw[0]) if one.header is not None else one for one in parts]
    averagers = [found for found in inner if found.library != "torch.optim"]
    first = averagers[0] if len(averagers) == 1 else Recognised("", ())
    step = next(
        (n for key in ("global_step", "step") if (n := whole(state.get(key))) is not None), first.step
    )
    notes = first.notes if averaged else (*first.notes, PLAIN)
    return replace(first, parts=tuple(parts), step=step, notes=notes)


def _called(key: str, value: Any) -> Part:
    if _AVERAGE.search(key):
        return part("average", "average", key, value, f"an average by its key {key!r} alone")
    return part(key, "unknown", key, value)


def _beside_an_average(one: Part) -> Part:
    """What stands beside an average under a model's usual key is the model that trains."""
    if one.role == "unknown" and one.path in _RAW:
        return replace(one, name="raw", role="raw")
    return one


def _plain(weights: Weights, tree: Any) -> Recognised:
    note = _REWRITTEN if KEY in weights.metadata else PLAIN
    tensors = tensors_in(tree) if is_weights(tree) else dict(weights.slots)
    return Recognised("", (unwrapped(Part("weights", "unknown", "", tensors)),), notes=(note,))


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
