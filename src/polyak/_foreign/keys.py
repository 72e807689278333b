"""A training script's own dict: each entry by what it is, or else by what its key calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from polyak._files.checkpoint import LazyTensor
from polyak._foreign.averagers import numbered, state_of_an_averager
from polyak._foreign.flatten import flattened
from polyak._foreign.inside import divided
from polyak._foreign.parts import (
    Part,
    Recognised,
    is_weights,
    mapping,
    part,
    same_shapes,
)
from polyak._foreign.states import completed
from polyak._foreign.vocabulary import is_average, is_optimizer, partners

PLAIN = "plain weights: nothing says whether they are averaged"
_RAW = ("model", "state_dict", "model_state_dict", "module", "net", "raw")
_DEPTH = 3  # keys that lead to an average


def by_keys(tree: Any) -> Recognised | None:
    """What the entries of a dict are, or of a dict in it; None if none of them is a set of weights."""
    return _by_keys(tree, "", set(), _DEPTH)


def _by_keys(tree: Any, path: str, entered: set[int], depth: int) -> Recognised | None:
    if id(tree) in entered or is_weights(tree):
        return None
    entered.add(id(tree))  # files can share a dict a million times
    inner: list[Recognised] = []
    parts: list[Part] = []
    seen: set[int] = set()
    entries = {f"{path}.{key}" if path else str(key): value for key, value in mapping(tree).items()}
    distinct = {id(value): value for value in entries.values()}
    models = {i for i, one in distinct.items() if is_weights(one) and state_of_an_averager(one, "") is None}
    for key, value in entries.items():
        name = key.rpartition(".")[2]
        if is_optimizer(name):
            inner += _optimizer(key, value)
        elif id(value) in models and not is_average(name):
            parts += _floats(part(name, "unknown", key, value))
        else:
            inner += averages_in(value, key, seen)
    if not parts and not any(one.role == "average" for found in inner for one in found.parts):
        if any(one.role == "optimizer" for found in inner for one in found.parts):
            # What is beside an optimizer, and in no dict of its own, is the model.
            loose = {key: value for key, value in mapping(tree).items() if isinstance(value, LazyTensor)}
            parts += _floats(part("weights", "unknown", path, loose))
        if not parts and depth:
            nested = (
                _by_keys(value, key, entered, depth - 1)
                for key, value in entries.items()
                if isinstance(value, Mapping)
            )
            return next((found for found in nested if found is not None), _read(inner, parts))
    return _read(inner, parts)


def averages_in(tree: Any, path: str, seen: set[int], depth: int = _DEPTH) -> Iterator[Recognised]:
    """The averages in a node of a file: states of classes that are known, and weights whose key says so.

    Args:
        tree: the node.
        path: the keys that lead to it.
        seen: nodes that were looked at, which files can share.
        depth: how many keys further to look.
    """
    if id(tree) in seen:
        return
    seen.add(id(tree))
    found, key = state_of_an_averager(tree, path), path.rpartition(".")[2]
    if found is not None:
        yield found
    elif is_weights(tree):
        if is_average(key):
            yield Recognised("", (part("average", "average", path, tree, _by_key(key)),))
    elif isinstance(tree, (list, tuple)):
        listed = cast("list[Any]", tree)
        if is_average(key) and listed and all(isinstance(one, LazyTensor) for one in listed):
            yield Recognised("", (numbered("average", "average", path, listed, "its library"),))
    elif depth and isinstance(tree, Mapping):
        for name, value in mapping(cast("Any", tree)).items():
            yield from averages_in(value, f"{path}.{name}", seen, depth - 1)


def _by_key(key: str) -> str:
    return f"an average by its key {key!r} alone"


def _optimizer(key: str, value: Any) -> list[Recognised]:
    found = state_of_an_averager(value, key)
    if found is not None:
        return [found]
    tensors = flattened(key, mapping(value))
    return [Recognised("torch.optim", (Part("optimizer", "optimizer", key, tensors),))] if tensors else []


def _floats(one: Part) -> list[Part]:
    """A part, if there are weights in it; the state of a random generator is bytes."""
    return [one] if any(slot.dtype.kind not in "iub" for slot in one.tensors.values()) else []


def _read(inner: list[Recognised], parts: list[Part]) -> Recognised | None:
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
    """What stands beside an average under a model's usual key is the model that trains."""
    if one.role == "unknown" and one.path.rpartition(".")[2] in _RAW:
        return replace(one, name="raw", role="raw")
    return one
