"""The states of averaging classes: alone in a file, or anywhere in a training checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from polyak._files.checkpoint import LazyTensor
from polyak._foreign.copies import is_average
from polyak._foreign.nodes import Node, count_in, is_state_dict
from polyak._foreign.own import OLD_STATE, STATE, state_of_ema
from polyak._foreign.parts import Part, Recognised, below
from polyak._foreign.producers import Producer, decay_of, optimizer_state, weights_at
from polyak.schedules import Capped, Constant, Decay, Warmup

_DIFFUSERS = ("decay", "min_decay", "update_after_step", "use_ema_warmup", "inv_gamma", "power")


def state_at(node: Node) -> Recognised | None:
    """The state of an averaging class or an optimizer in a node, if it is one."""
    return next((found for row in AVERAGERS if (found := row.read(node)) is not None), None)


def averages_in(node: Node, seen: set[int], depth: int = 3) -> Iterator[Recognised]:
    """The averages in a node of a file: states of known classes, and weights identified by their key.

    ``seen`` contains the visited values, since files can share them.
    """
    if id(node.tree) in seen:
        return
    seen.add(id(node.tree))
    if (found := state_at(node)) is not None:
        yield found
    elif node.is_weights:
        if is_average(node.key):
            why = f"an average by its key {node.key!r} alone"
            [part] = weights_at(node, ".", "average")
            yield Recognised("", (replace(part, notes=(why, *part.notes)),))
    elif node.listed:
        if is_average(node.key) and all(isinstance(one, LazyTensor) for one in node.listed):
            yield Recognised("", tuple(weights_at(node, ".", "average")))
    elif depth and isinstance(node.tree, Mapping):
        for child in node.children:
            yield from averages_in(child, seen, depth - 1)


def diffusers_decay(node: Node) -> Decay | None:
    """The decay of the settings that diffusers' EMAModel keeps.

    Without its warm-up the decay is ``min(β, (1+s)/(10+s))`` with ``s = t - update_after_step - 1``, which
    is ``Capped`` one step late: no decay of polyak's is exactly that, so ``diffusers_settings`` has it.
    """
    if not node.at("use_ema_warmup").tree:
        return None
    return decay_of(
        lambda: Warmup(
            _number(node, "decay"),
            gamma=_number(node, "inv_gamma"),
            power=_number(node, "power"),
            min_decay=_number(node, "min_decay"),
            after=node.at("update_after_step").count or 0,
        )
    )


def diffusers_settings(node: Node) -> str:
    """The settings of diffusers' EMAModel as text."""
    return f"EMAModel({', '.join(f'{key}={node.keys[key]}' for key in _DIFFUSERS if node.has(key))})"


def _number(node: Node, key: str) -> float:
    return float(str(node.keys[key]))


def _only_module(node: Node) -> bool:
    rest = {name: value for name, value in node.keys.items() if name != "n_averaged"}
    return is_state_dict(rest) and all(str(name).startswith("module.") for name in rest)


def _post_hoc_ema(node: Node) -> Recognised | None:
    tensors = node.tensors
    found = [re.fullmatch(r"ema_models\.(\d+)\.initted", name) for name in tensors]
    places = sorted(int(match[1]) for match in found if match)
    if not places:
        return None
    parts = [
        Part(f"average-{i}", "average", node.path, below(tensors, f"ema_models.{i}.ema_model."))
        for i in places
    ]
    return Recognised("", tuple(parts), updates=count_in(tensors.get(f"ema_models.{places[0]}.step")))


def _torch_ema_decay(node: Node) -> Decay | None:
    kind = Constant if node.at("num_updates").count is None else Capped
    return decay_of(lambda: kind(_number(node, "decay")))


def _nemo_decay(node: Node) -> Decay | None:
    every = node.at("every_n_steps").count == 1
    return decay_of(lambda: Constant(_number(node, "decay"))) if every else None


_CALLS = "step counts the calls of update(); beta, update_every and the warm-up are not in the file"

AVERAGERS = (
    Producer("polyak", state_of_ema, marks=STATE),
    Producer("polyak", state_of_ema, marks=OLD_STATE),
    Producer(
        "swa_utils",
        {"module.": "average"},
        marks=("n_averaged", "module."),
        fits=lambda node: node.at("n_averaged").count is not None and _only_module(node),
        updates="n_averaged",
        notes=("n_averaged counts the updates; whether each had the same weight is not in the file",),
    ),
    Producer(
        "ema-pytorch",
        {"ema_model.": "average", "online_model.": "raw"},
        marks=("initted", "step", "ema_model."),
        fits=lambda node: node.tensors["step"].dtype.kind == "f",
        notes=(_CALLS, "PostHocEMA wrote step in the dtype of its weights: the file's name has it exactly"),
    ),
    Producer(
        "ema-pytorch",
        {"ema_model.": "average", "online_model.": "raw"},
        marks=("initted", "step", "ema_model."),
        updates="step",
        notes=(_CALLS,),
    ),
    Producer(
        "ema-pytorch",
        _post_hoc_ema,
        notes=("PostHocEMA: one average for each gamma; the gammas themselves are not in the file",),
    ),
    Producer(
        "torch_ema",
        {"shadow_params": "average", "collected_params": "raw"},
        marks=("decay", "num_updates", "shadow_params", "collected_params"),
        updates="num_updates",
        decay=_torch_ema_decay,
    ),
    Producer(
        "diffusers",
        {"shadow_params": "average"},
        marks=("decay", "optimization_step", "shadow_params", "update_after_step"),
        step="optimization_step",
        updates="optimization_step",
        decay=diffusers_decay,
        notes=(diffusers_settings,),
    ),
    Producer(  # NeMo's EMA optimizer, which keeps the average beside the state of the one it wraps
        "NeMo",
        {"ema": "average"},
        marks=("opt", "ema", "current_step", "decay", "every_n_steps"),
        decay=_nemo_decay,
    ),
    Producer("torch.optim", optimizer_state, marks=("state", "param_groups")),
)
