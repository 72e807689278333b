"""Exporting averages in the layout of another library's checkpoints.

Only layouts that are plain dicts of tensors are written. Layouts that pickle classes, or number the tensors
in an order that only the model knows, are refused with instructions for that library.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from polyak._dtypes import BFLOAT16, Array
from polyak._files.source import Where
from polyak._files.write import atomic
from polyak._foreign.open_any import open_weights
from polyak._foreign.parts import Part
from polyak._foreign.recognize import recognise
from polyak._type_guards import is_dict
from polyak.convert.convert import Plan, chosen_parts
from polyak.convert.rename_rules import NameMap
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules.profile import COPY

Target: TypeAlias = Literal["torch", "timm", "lightning", "swa_utils", "ema-pytorch", "paddle"]
Arrays: TypeAlias = Mapping[str, Array]
Tree: TypeAlias = dict[str, Any]  # nested dicts of arrays and plain values

_UNABLE = {
    "ultralytics": "its files pickle the model's own classes. Load the average into the model, save it there",
    "edm2": "its files pickle the model's own classes. Load the average into the network, pickle it there",
    "torch_ema": "it keeps a list in the order of model.parameters(), which a file does not know. "
    "Load the average into the model and make an ExponentialMovingAverage of its parameters",
    "diffusers": "its model folders need the model's config. Load the average into the model and call its "
    "save_pretrained",
}


@dataclass(frozen=True)
class ExportInput:
    """The contents of an export."""

    average: Arrays  # the averaged weights, or those of unknown role
    raw: Arrays | None  # the raw model; None if not given
    updates: int | None  # of the average; None if unknown
    step: int | None  # training steps; None if unknown
    where: str  # the source, for messages

    def counted(self, what: str) -> int:
        """The number of updates, for a layout that requires it."""
        if self.updates is None:
            raise CheckpointError(
                f"{self.where} does not say how many updates made it, and {what} counts them: "
                "give the number with --updates."
            )
        return self.updates


@dataclass(frozen=True)
class ExportTree:
    """A checkpoint in another library's layout."""

    tree: Tree  # dicts of NumPy arrays
    unmatched: tuple[str, ...]  # names that no rule of the map matched; empty without a map
    dropped: tuple[str, ...]  # names that a rule of the map dropped


def export_tree(
    source: Where,
    to: str,
    raw: Where | None = None,
    part: str | None = None,
    updates: int | None = None,
    names: NameMap | None = None,
) -> ExportTree:
    """A checkpoint in another library's layout; all of it is in memory.

    Args:
        source: the average: any checkpoint that polyak reads.
        to: the library, one of ``Target``.
        raw: the raw model, if the layout requires it and the source does not contain it.
        part: the set of weights to use as the average, if the source has several.
        updates: number of updates of the average, if not in the source.
        names: rules for other names and layouts.
    """
    check_target(to)
    if updates is not None and updates < 1:
        raise ConfigError(f"updates={updates}: an average is made by at least 1.")
    with open_weights(source) as weights:
        found = recognise(weights)
        has_average = any(one.role == "average" for one in found.parts)
        chosen = chosen_parts(found, part or ("average" if has_average else None), str(source))
        if len(chosen) > 1:
            raise ConfigError(
                f"{source} holds {', '.join(one.name for one in chosen)}: choose one of them with --part."
            )
        plan = Plan.of(chosen[0], names, str(source))
        average = _read(plan)
        other = next((one for one in found.parts if one.role == "raw" and chosen[0].role == "average"), None)
        inner = None if other is None or raw is not None else _read(Plan.of(other, names, str(source)))
        known = _updates_of(chosen[0]) if found.updates is None else found.updates
    inputs = ExportInput(
        average=average,
        raw=inner if raw is None else _raw_of(raw, names),
        updates=known if updates is None else updates,
        step=found.step,
        where=str(source),
    )
    return ExportTree(_LAYOUTS[to](inputs), plan.renamed.unmatched, plan.renamed.dropped)


def check_target(to: str) -> None:
    """Check that a layout can be written."""
    if to in _UNABLE:
        raise ConfigError(f"to={to!r}: polyak cannot write this library's files: {_UNABLE[to]}.")
    if to not in get_args(Target):
        raise ConfigError(f"to={to!r}: must be one of {', '.join(get_args(Target))}.")


def count_of(tree: Mapping[str, Any]) -> int:
    """The number of tensors in nested dicts."""
    inner = [value for value in tree.values() if is_dict(value)]
    return sum(isinstance(value, np.ndarray) for value in tree.values()) + sum(map(count_of, inner))


def write_paddle(out: str | os.PathLike[str], tree: Arrays) -> None:
    """A ``.pdparams`` file, as Paddle writes it: a pickle of arrays, bfloat16 as the uint16 of its bits."""
    plain = {name: _for_paddle(name, array) for name, array in tree.items()}
    with atomic(Path(out)) as temporary, temporary.open("wb") as file:
        pickle.dump(plain, file, protocol=4)


def _for_paddle(name: str, array: Array) -> Array:
    if array.dtype == BFLOAT16:
        return array.view(np.uint16)
    if array.dtype.kind not in "biufc" or array.dtype.name in ("uint16", "uint32", "uint64"):
        raise CheckpointError(
            f"{name} is {array.dtype}, a dtype that Paddle does not have. Nothing was written."
        )
    return array


def _raw_of(source: Where, names: NameMap | None) -> Arrays:
    with open_weights(source) as weights:
        chosen = chosen_parts(recognise(weights), None, str(source))
        raw = [one for one in chosen if one.role == "raw"] or chosen
        if len(raw) > 1:
            raise ConfigError(
                f"raw={str(source)!r}: holds {', '.join(one.name for one in raw)}; give one only."
            )
        return _read(Plan.of(raw[0], names, str(source)))


def _read(plan: Plan) -> Arrays:
    return {name: plan.read(name) for name in plan.specs}


def _updates_of(part: Part) -> int | None:
    """The number of updates in a track's history; a mixture has no such number."""
    header = part.header
    if header is None or header.profile is None or len(header.profile.terms) != 1:
        return None
    return sum(run.count for run in header.profile.terms[0][1] if run.decay != COPY)


def _torch(inputs: ExportInput) -> Tree:
    return dict(inputs.average)


def _timm(inputs: ExportInput) -> Tree:
    raw = {} if inputs.raw is None else {"state_dict": dict(inputs.raw)}
    return {**raw, "state_dict_ema": dict(inputs.average)}


def _lightning(inputs: ExportInput) -> Tree:
    """With the raw model the layout of a WeightAveraging callback at work; else that of a plain model."""
    tree: Tree = {
        "pytorch-lightning_version": "2.6.0",  # whose layout this is
        "epoch": 0,
        "global_step": inputs.step or 0,
        "state_dict": dict(inputs.average),
    }
    if inputs.raw is not None:
        count = np.array(inputs.counted("lightning's WeightAveraging"), np.int64)
        tree |= {"current_model_state": dict(inputs.raw), "averaging_state": {"n_averaged": count}}
    return tree


def _swa_utils(inputs: ExportInput) -> Tree:
    count = np.array(inputs.counted("AveragedModel"), np.int64)
    return {"n_averaged": count, **_prefixed("module.", inputs.average)}


def _ema_pytorch(inputs: ExportInput) -> Tree:
    raw = {} if inputs.raw is None else _prefixed("online_model.", inputs.raw)
    count = np.array(inputs.counted("ema-pytorch's EMA"), np.int64)
    return {"initted": np.array(True), "step": count, **raw, **_prefixed("ema_model.", inputs.average)}


def _prefixed(prefix: str, arrays: Arrays) -> Tree:
    return {prefix + name: array for name, array in arrays.items()}


_LAYOUTS: Mapping[str, Callable[[ExportInput], Tree]] = {
    "torch": _torch,
    "timm": _timm,
    "lightning": _lightning,
    "swa_utils": _swa_utils,
    "ema-pytorch": _ema_pytorch,
    "paddle": _torch,
}
