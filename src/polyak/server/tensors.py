"""Modules, layers, mappings and files as arrays by name, and back; imports no framework by itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from polyak._core.tensor_map import Selection
from polyak._dtypes import NAMES, Array
from polyak._files.header import Header
from polyak._files.source import Where
from polyak._foreign.load import Average
from polyak._foreign.open_any import open_weights
from polyak._foreign.recognize import recognise
from polyak._type_guards import is_mapping
from polyak.errors import ServerError
from polyak.schedules import Profile

# A torch module, a Paddle layer, tensors by name, an average read by ``polyak.load``, or a file.
Model: TypeAlias = Any


class Values(NamedTuple):
    """Arrays by name, and what is known of them.

    copied: floats that are not averaged, such as the vectors of spectral norm.
    """

    arrays: Mapping[str, Array]
    copied: frozenset[str] = frozenset()
    profile: Profile | None = None
    step: int | None = None


def values_of(model: Model) -> Values:
    """The tensors of a model in any form, on the model's own memory where that is possible.

    Raises:
        ServerError: it is none of the forms.
    """
    if isinstance(model, str | Path):
        return _file(model)
    if isinstance(model, Average):
        profile = _profile_of(model.header) if model.header.role == "average" else None
        return Values(model.tensors, profile=profile, step=model.header.step)
    if is_mapping(model):
        return Values({name: _array(name, tensor) for name, tensor in model.items()})
    map_of, tensors_of = _framework(model)
    kept = _entries(map_of, model)
    copied = frozenset(entry.name for entry in kept if entry.role == "copy")
    return Values({entry.name: tensors_of.as_array(entry.live) for entry in kept}, copied)


def write_into(model: Model, arrays: Mapping[str, Array]) -> None:
    """Copy arrays into the tensors of a module, a layer or a mapping, by name, in their own dtypes.

    Raises:
        ServerError: names or shapes differ; nothing was written.
    """
    if is_mapping(model):
        targets = {name: [tensor] for name, tensor in model.items()}
    else:
        targets = {entry.name: entry.tensors for entry in _entries(_framework(model)[0], model)}
    if targets.keys() != arrays.keys():
        differing = sorted(targets.keys() ^ arrays.keys())[:3]
        raise ServerError(f"into: {', '.join(differing)} is not in both, the model and the average.")
    for name, tensors in targets.items():
        if tuple(tensors[0].shape) != arrays[name].shape:
            raise ServerError(
                f"into: {name} has shape {tuple(tensors[0].shape)}, the average {arrays[name].shape}."
            )
    for name, tensors in targets.items():
        for tensor in tensors:
            _overwrite(tensor, arrays[name])


def _entries(map_of: ModuleType, model: Model) -> list[Any]:
    """What a model's file would hold; each tensor must be whole in this process."""
    entries = map_of.TensorMap(model, Selection.of(None, (), "auto")).entries
    kept = [entry for entry in entries.values() if entry.persistent]
    for entry in kept:
        if entry.piece is not None:
            raise ServerError(
                f"{entry.name} is sharded, and this process has only a part of it. Gather the model first, "
                "and push its tensors by name from one process."
            )
    return kept


def _file(path: Where) -> Values:
    """The average in a file if it has one, else its first set of weights."""
    with open_weights(path) as weights:
        found = recognise(weights)
        if not found.models:
            raise ServerError(f"{path} holds no weights of a model.")
        part = found.models[0]
        profile = _profile_of(part.header) if part.header and part.role == "average" else None
        arrays = {name: tensor.read() for name, tensor in part.tensors.items()}
        return Values(arrays, profile=profile, step=found.step)


def _profile_of(header: Header) -> Profile | None:
    if header.rules:
        patterns = ", ".join(rule.pattern for rule in header.rules)
        raise ServerError(
            f"the average {header.track!r} has a profile for each of {patterns}, and a push has one. Push an "
            "average with one decay, or the raw weights."
        )
    return header.profile


def _array(name: str, tensor: Any) -> Array:
    array = cast(Array, tensor) if isinstance(tensor, np.ndarray) else _framework(tensor)[1].as_array(tensor)
    if array.dtype not in NAMES and array.dtype != np.complex128:
        raise ServerError(f"{name} is {array.dtype}: only arrays of numbers can be averaged.")
    return array


def _overwrite(tensor: Any, array: Array) -> None:
    if isinstance(tensor, np.ndarray):
        np.copyto(cast(Array, tensor), array, casting="unsafe")
    else:
        ops = _framework(tensor)[1]
        # Of this process's own: arrays from the object store are read-only.
        ops.overwrite(tensor, ops.as_tensor(np.array(array)))


def _framework(thing: Any) -> tuple[ModuleType, ModuleType]:
    """The two modules of polyak that know the framework of a model or tensor."""
    torch, paddle = sys.modules.get("torch"), sys.modules.get("paddle")
    if torch is not None and isinstance(thing, torch.nn.Module | torch.Tensor):
        from polyak.torch import tensor_map, tensors

        return tensor_map, tensors
    if paddle is not None and isinstance(thing, paddle.nn.Layer | paddle.Tensor):
        from polyak.paddle import tensor_map, tensors

        return tensor_map, tensors
    raise ServerError(
        f"{type(thing).__name__} is no model: give a torch module, a Paddle layer, tensors or arrays by "
        "name, an average from polyak.load, or a file."
    )
