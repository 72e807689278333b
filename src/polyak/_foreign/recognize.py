"""Recognising a file by its structure. Nothing is guessed from values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple, cast

from polyak._files.checkpoint import Checkpoint
from polyak._files.header import KEY, Origin
from polyak._files.open import header_of
from polyak._foreign import keras
from polyak._foreign.averagers import AVERAGERS, averages_in, state_at
from polyak._foreign.copies import divided, is_average, is_optimizer, partners
from polyak._foreign.flatten import flattened
from polyak._foreign.libraries import FOLDERS, TRAINING
from polyak._foreign.nodes import Node, count_in, json_beside, tensors_in
from polyak._foreign.own import has_note, is_own, read_note, resumable
from polyak._foreign.parts import Part, Recognised, Role, completed, same_shapes, unwrapped
from polyak._foreign.producers import optimizers, weights_at
from polyak.errors import CheckpointError

PLAIN = "plain weights: nothing says whether they are averaged"
NOTED = "a note of polyak's beside the file says so"
_IN_HDF5 = "the tensors are in HDF5, which Keras reads"
_REWRITTEN = (
    "it has polyak's header but no checksums, so another program has rewritten it: the header's claims may "
    "no longer hold"
)
# Keys under which training loops keep their count of optimizer steps. "epoch" counts something else.
_STEP_KEYS = (
    "global_step",
    "step",
    "iter",
    "iteration",
    "train_step",
    "meta.iter",  # MMEngine
    "batch_idx_train",  # icefall
    "optimizer_history.-1.num_updates",  # fairseq
    "trainer_state.global_step",
    "train_state.step",  # torchtitan
)
_TRAINER_STATE = "trainer_state.json"
# A number that its name calls a step, not followed by a fraction or a "k".
_LABELLED = re.compile(
    r"(?<![a-z])(?:step|iter|iteration|itr)[-_= ]?(\d+)(?![\da-z]|\.\d)|^checkpoint-(\d+)$", re.IGNORECASE
)
_EPOCH = re.compile(r"(?<![a-z])epoch[-_= ]?(\d+)(?![\da-z]|\.\d)", re.IGNORECASE)
_SETTING = re.compile(
    r"(warmup|max|num|total|per|every|eval|save|decay|time|inference|sampling)[-_ ]?$", re.IGNORECASE
)
_RAW = ("model", "state_dict", "model_state_dict", "module", "net", "raw")


def recognise(weights: Checkpoint) -> Recognised:
    """Recognise an open checkpoint by its structure.

    Args:
        weights: from ``open_weights``.

    Returns:
        The library that wrote it and the sets of weights in it, averages first. A file that no library
        is known to write has the library "", and parts whose role is "unknown" or follows from their key.

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
    step = None if root.is_weights else _step_inside(root)
    if step is None and found.step is None:
        step = _step_beside(weights.where)
    if step is not None:
        found = replace(found, step=step.number, step_key=step.source)
    return _ordered(found)


def _by_tables(root: Node) -> Recognised | None:
    for row in TRAINING:
        if (found := row.read(root)) is not None:
            return replace(found, parts=(*found.parts, *optimizers(root)))
    return next((found for row in (*AVERAGERS, *FOLDERS) if (found := row.read(root)) is not None), None)


def by_keys(node: Node, entered: set[int] | None = None, depth: int = 3) -> Recognised | None:
    """A training script's own dict: each entry is recognised by its structure, or else by its key.

    A dict without weights is searched for one with weights, ``depth`` keys deep.
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
            found = [replace(one, name=child.key) for one in weights_at(child, ".", "unknown")]
            parts += filter(_has_floats, found)
        else:
            inner += averages_in(child, seen)
    if not parts and not any(one.has("average") for one in inner):
        if any(one.has("optimizer") for one in inner):
            # Tensors directly beside an optimizer are the model.
            loose = unwrapped(Part("weights", "unknown", node.path, node.tensors))
            parts += [loose] if _has_floats(loose) else []
        if not parts and depth:
            nested = (by_keys(one, entered, depth - 1) for one in children if isinstance(one.tree, Mapping))
            if (first := next(filter(None, nested), None)) is not None:
                return first
    return _assembled(inner, parts)


def _optimizer(node: Node) -> list[Recognised]:
    if (found := state_at(node)) is not None:
        return [found]
    part = Part("optimizer", "optimizer", node.path, flattened(node.path, node.keys))
    return [Recognised("torch.optim", (part,))] if part.tensors else []


def _has_floats(one: Part) -> bool:
    """Whether a part holds weights; the state of a random generator is bytes."""
    return any(tensor.dtype.kind not in "iub" for tensor in one.tensors.values())


def _assembled(inner: list[Recognised], parts: list[Part]) -> Recognised | None:
    """Assign roles to the entries of a dict: averages, their originals, and the averaging library."""
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
            return replace(one, name="average", role="average").noted(why)
        if one.name in partners(other.name) and same_shapes(one.tensors, other.tensors):
            return replace(one, name="raw", role="raw")
    return one


def _beside_an_average(one: Part) -> Part:
    """Weights beside an average under a model's usual key are the raw ones."""
    if one.role == "unknown" and one.path.rpartition(".")[2] in _RAW:
        return replace(one, name="raw", role="raw")
    return one


def _keras(weights: Checkpoint) -> Recognised:
    """A model file of Keras, by the description of polyak's callback."""
    headers = keras.marked(weights)
    if not headers:
        part = Part("weights", "unknown", "model.weights.h5", {})
        return Recognised("keras", (part,), notes=(_IN_HDF5, PLAIN))
    places = ("model.weights.h5", *["polyak_average"] * len(headers[1:]))
    parts = [
        Part(header.track, cast("Role", header.role), place, {}, header=header)
        for header, place in zip(headers, places, strict=True)
    ]
    return _ordered(Recognised("keras", tuple(parts), headers[0].step, notes=(_IN_HDF5,)))


def _as_noted(found: Recognised, weights: Checkpoint) -> Recognised:
    """Add the header of polyak's note beside the file, if it applies to these bytes and to one model."""
    models = found.models
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
    part = Part(header.track, header.role, "", dict(weights.tensors), header=header)
    updates = Origin.from_state(header.state).updates if header.role == "average" else None
    return Recognised("polyak", (part,), header.step, updates, header.decay)


def _plain(root: Node) -> Recognised:
    weights = root.file
    note = _REWRITTEN if KEY in weights.metadata else PLAIN
    tensors = tensors_in(root.tree) if root.is_weights else dict(weights.tensors)
    part = unwrapped(Part("weights", "unknown", "", tensors))
    found = None if has_note(weights) else divided(part)
    if found is not None and found.has("average"):
        return found
    return replace(found or Recognised("", (part,)), notes=(note,))


def _ordered(found: Recognised) -> Recognised:
    """Averages first, with unique names that are valid in file names."""
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


class Step(NamedTuple):
    """A training step and its source."""

    number: int
    source: str


def _step_inside(root: Node) -> Step | None:
    """The step in a training checkpoint; not in a state dict, whose tensors can have such names."""
    counts = ((key, root.at(key).count) for key in _STEP_KEYS)
    return next((Step(number, key) for key, number in counts if number is not None), None)


def _step_beside(where: str) -> Step | None:
    """The step in ``trainer_state.json`` of Hugging Face's and PaddleNLP's Trainers."""
    number = count_in(json_beside(where, _TRAINER_STATE).get("global_step"))
    return None if number is None else Step(number, _TRAINER_STATE)


def step_in_name(where: str) -> Step | None:
    """The step in the name of a file or else of its folder, if exactly one number there is called a step.

    Examples:
        >>> step_in_name("epoch=3-step=1200-v1.ckpt")
        Step(number=1200, source='file name')
        >>> step_in_name("run/checkpoint-500/model.safetensors")
        Step(number=500, source='folder name')
        >>> step_in_name("best-epoch=3-val_loss=0.51.ckpt")
    """
    return _numbered(where, _LABELLED)


def epoch_in_name(where: str) -> int | None:
    """The epoch in the name of a file or else of its folder, as ``step_in_name``.

    Examples:
        >>> epoch_in_name("epoch_3.pt"), epoch_in_name("epoch3/model.safetensors"), epoch_in_name("last.pt")
        (3, 3, None)
    """
    found = _numbered(where, _EPOCH)
    return None if found is None else found.number


def _numbered(where: str, labelled: re.Pattern[str]) -> Step | None:
    path = PurePath(where.replace("\\", "/"))
    for name, source in ((path.name, "file name"), (path.parent.name, "folder name")):
        found = {
            int(next(filter(None, match.groups())))
            for match in labelled.finditer(name)
            if not _SETTING.search(name[: match.start()])
        }
        if found:
            return Step(found.pop(), source) if len(found) == 1 else None
    return None
