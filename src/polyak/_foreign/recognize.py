"""From the structure of a file to what it is. Nothing is guessed from values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY
from polyak._files.open import header_of
from polyak._files.origin import Origin
from polyak._foreign import keras
from polyak._foreign.averagers import AVERAGERS, averages_in, state_at
from polyak._foreign.copies import divided, is_average, is_optimizer, partners
from polyak._foreign.flatten import flattened
from polyak._foreign.folders import FOLDERS
from polyak._foreign.nodes import Node, tensors_in
from polyak._foreign.note import has_note, read_note
from polyak._foreign.own import is_own, resumable
from polyak._foreign.parts import Part, Recognised, Role, completed, same_shapes, unwrapped
from polyak._foreign.producers import optimizers, weights_at
from polyak._foreign.steps import step_beside, step_inside
from polyak._foreign.training import TRAINING
from polyak.errors import CheckpointError

PLAIN = "plain weights: nothing says whether they are averaged"
NOTED = "a note of polyak's beside the file says so"
_IN_HDF5 = "the tensors are in HDF5, which Keras reads"
_REWRITTEN = (
    "it has polyak's header but no checksums, so another program has rewritten it: the header's claims may "
    "no longer hold"
)
_RAW = ("model", "state_dict", "model_state_dict", "module", "net", "raw")


def recognise(weights: Checkpoint) -> Recognised:
    """What an open checkpoint is, by its structure.

    Args:
        weights: from ``open_weights``.

    Returns:
        The library that wrote it and the sets of weights in it, averages first. A file that no library
        is known to write has the library "", and parts whose role is "unknown" or follows from their key.

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
    root = Node.root(weights)
    found = _by_tables(root) or by_keys(root) or _plain(root)
    step = None if root.is_weights else step_inside(root)
    if step is None and found.step is None:
        step = step_beside(weights.where)
    if step is not None:
        found = replace(found, step=step.number, step_key=step.source)
    return _ordered(found)


def _by_tables(root: Node) -> Recognised | None:
    for row in TRAINING:
        if (found := row.read(root)) is not None:
            return replace(found, parts=(*found.parts, *optimizers(root)))
    return next((found for row in (*AVERAGERS, *FOLDERS) if (found := row.read(root)) is not None), None)


def by_keys(node: Node, entered: set[int] | None = None, depth: int = 3) -> Recognised | None:
    """A training script's own dict: each entry by what it is, or else by what its key calls it.

    Args:
        node: the dict.
        entered: values that were looked into, which files can share.
        depth: how many keys further to look for a dict with weights in it.

    Returns:
        None if no entry is a set of weights.
    """
    entered = set() if entered is None else entered
    if id(node.tree) in entered or node.is_weights:
        return None
    entered.add(id(node.tree))  # files can share a dict a million times
    inner: list[Recognised] = []
    parts: list[Part] = []
    seen: set[int] = set()
    children = list(node.children)
    distinct = {id(one.tree): one for one in children}
    models = {i for i, one in distinct.items() if one.is_weights and state_at(one) is None}
    for child in children:
        if is_optimizer(child.key):
            inner += _optimizer(child)
        elif id(child.tree) in models and not is_average(child.key):
            models_here = [replace(one, name=child.key) for one in weights_at(child, ".", "unknown")]
            parts += filter(_has_floats, models_here)
        else:
            inner += averages_in(child, seen)
    if not parts and not any(one.has("average") for one in inner):
        if any(one.has("optimizer") for one in inner):
            # What is beside an optimizer, and in no dict of its own, is the model.
            loose = unwrapped(Part("weights", "unknown", node.path, node.slots))
            parts += [loose] if _has_floats(loose) else []
        if not parts and depth:
            for child in children:
                found = by_keys(child, entered, depth - 1) if isinstance(child.tree, Mapping) else None
                if found is not None:
                    return found
    return _assembled(inner, parts)


def _optimizer(node: Node) -> list[Recognised]:
    if (found := state_at(node)) is not None:
        return [found]
    tensors = flattened(node.path, node.keys)
    return (
        [Recognised("torch.optim", (Part("optimizer", "optimizer", node.path, tensors),))] if tensors else []
    )


def _has_floats(one: Part) -> bool:
    """Whether a part holds weights; the state of a random generator is bytes."""
    return any(slot.dtype.kind not in "iub" for slot in one.tensors.values())


def _assembled(inner: list[Recognised], parts: list[Part]) -> Recognised | None:
    """What the entries of a dict are together: which is the average of which, and which averager made it."""
    if not inner and not parts:
        return None
    parts = [_beside_its_copy(one, parts) for one in parts]
    within = [divided(one) if one.role == "unknown" else None for one in parts]
    inner += [found for found in within if found is not None]
    parts = [one for one, found in zip(parts, within, strict=True) if found is None]
    parts += [one for found in inner for one in found.parts]
    averaged = any(one.role == "average" for one in parts)
    parts = [_beside_an_average(one) if averaged else one for one in parts]
    raw = [one for one in parts if one.role == "raw"]
    if len(raw) == 1:
        parts = [completed(one, raw[0]) if one.header is not None else one for one in parts]
    averagers = [found for found in inner if found.library not in ("", "torch.optim")]
    first = averagers[0] if len(averagers) == 1 else Recognised("", ())
    return replace(first, parts=tuple(parts), notes=first.notes if averaged else (*first.notes, PLAIN))


def _beside_its_copy(one: Part, parts: list[Part]) -> Part:
    """A teacher beside a student of the same shapes is its average, and the student the model that trains."""
    for other in parts:
        if other.name in partners(one.name) and same_shapes(one.tensors, other.tensors):
            why = f"the average of {other.name!r} by its key, with the same names and shapes"
            return replace(one, name="average", role="average", notes=(*one.notes, why))
        if one.name in partners(other.name) and same_shapes(one.tensors, other.tensors):
            return replace(one, name="raw", role="raw")
    return one


def _beside_an_average(one: Part) -> Part:
    """What is beside an average under a model's usual key is the model that trains."""
    if one.role == "unknown" and one.path.rpartition(".")[2] in _RAW:
        return replace(one, name="raw", role="raw")
    return one


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
    part = Part(header.track, header.role, "", dict(weights.slots), header=header)
    updates = Origin.from_state(header.state).updates if header.role == "average" else None
    return Recognised("polyak", (part,), header.step, updates, header.decay)


def _plain(root: Node) -> Recognised:
    weights = root.file
    note = _REWRITTEN if KEY in weights.metadata else PLAIN
    tensors = tensors_in(root.tree) if root.is_weights else dict(weights.slots)
    part = unwrapped(Part("weights", "unknown", "", tensors))
    found = None if has_note(weights) else divided(part)
    if found is not None and found.has("average"):
        return found
    return replace(found or Recognised("", (part,)), notes=(note,))


def _ordered(found: Recognised) -> Recognised:
    """Averages first, and no two parts of the same name; names are fit for those of files."""
    rank: Mapping[Role, int] = {"average": 0, "raw": 1, "unknown": 2, "optimizer": 3}
    parts = sorted(found.parts, key=lambda one: rank[one.role])
    names = Counter(_fit_for_a_file(one.name) for one in parts)
    return replace(found, parts=tuple(replace(one, name=_unique(one, names)) for one in parts))


def _unique(one: Part, names: Counter[str]) -> str:
    """A name that several parts share is followed by the key of each."""
    name = _fit_for_a_file(one.name)
    return name if names[name] == 1 else f"{name}-{_fit_for_a_file(one.path)}"


def _fit_for_a_file(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", key)
