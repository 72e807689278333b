"""Training checkpoints that a few keys tell apart: one row per library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from polyak._foreign.averagers import optimizer_in
from polyak._foreign.parts import Part, Recognised, Role, at, is_weights, mapping, part, whole


class Layout(NamedTuple):
    """How a library lays out its checkpoints.

    library: that writes them.
    marks: keys, joined by dots, that only its files hold together.
    sets: key of each set of weights that may be there → its role.
    updates: key of the average's count of updates.
    note: why the roles are these.
    """

    library: str
    marks: tuple[str, ...]
    sets: Mapping[str, Role]
    note: str
    updates: str = ""


LAYOUTS = (
    Layout(
        "mmengine",
        ("meta.mmengine_version", "state_dict", "ema_state_dict"),
        {"state_dict": "average", "ema_state_dict": "raw"},
        "EMAHook exchanges the two when it saves: ema_state_dict is the model that trains",
        updates="ema_state_dict.steps",
    ),
    Layout(
        "mmengine",
        ("meta.mmengine_version", "state_dict"),
        {"state_dict": "unknown"},
        "the model that trains, or the average of an EMAHook if ema_state_dict was removed for publishing",
    ),
    Layout(
        "icefall",
        ("model", "model_avg", "batch_idx_train"),
        {"model_avg": "average", "model": "raw"},
        "model_avg is the mean over training of the model every average_period batches",
    ),
    Layout(
        "fairseq",
        ("model", "extra_state", "optimizer_history"),
        {"extra_state.ema": "average", "extra_state.ema_fp32_params": "average", "model": "unknown"},
        "model is the model that trains, or in a file of scripts/average_checkpoints.py the mean of several",
    ),
)


def by_layout(tree: Any, where: str) -> Recognised | None:
    """What a file is whose keys are those of a row of ``LAYOUTS``."""
    del where
    for row in LAYOUTS:
        if all(at(tree, mark) is not None for mark in row.marks):
            return _read(row, tree)
    return None


def _read(row: Layout, tree: Any) -> Recognised | None:
    parts = tuple(
        _set(key, role, value) for key, role in row.sets.items() if is_weights(value := at(tree, key))
    )
    if not parts:
        return None
    updates = whole(at(tree, row.updates)) if row.updates else None
    optimizers = optimizer_in(mapping(tree))
    return Recognised(row.library, (*parts, *optimizers), updates=updates, notes=(row.note,))


def _set(key: str, role: Role, value: Any) -> Part:
    counters = {"steps"}  # of mmengine's averaged models
    if isinstance(value, Mapping):
        value = {name: one for name, one in mapping(value).items() if name not in counters}
    return part("weights" if role == "unknown" else role, role, key, value)
