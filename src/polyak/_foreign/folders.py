"""What only the files beside a file of weights tell: a config, or the other half of a pair."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from polyak._files.checkpoint import Checkpoint, LazyTensor
from polyak._files.source import beside, exists, open_source
from polyak._foreign.averagers import diffusers_schedule
from polyak._foreign.inside import divided
from polyak._foreign.parts import (
    Part,
    Recognised,
    Role,
    mapping,
    tensors_in,
    tree_of,
    unwrapped,
    whole,
)
from polyak._foreign.steps import Step
from polyak.errors import CheckpointError

_POLYAK = "polyak.safetensors"  # in a checkpoint of Hugging Face's Trainer
_REGISTERED = "custom_checkpoint_0.pkl"  # in what Accelerate saves, beside the model
_MODEL = re.compile(r"(adapter_|pytorch_)?model\b")
_TRAINER_STATE = "trainer_state.json"
_ZERO_COST = re.compile(r"ema([._-]|$)")
_LIMIT = 1 << 24  # bytes; configs take a few thousand, a log of a million steps some more


def transformers(weights: Checkpoint) -> Recognised | None:
    """The model in a checkpoint of Hugging Face's ``Trainer`` whose training polyak averaged."""
    if not _is_model(weights.where) or not exists(beside(weights.where, _POLYAK)):
        return None
    note = f"the model that trains; its average is in the folder average, and with its history in {_POLYAK}"
    return Recognised("transformers", (_all("raw", "raw", weights),), notes=(note,))


def accelerate(weights: Checkpoint) -> Recognised | None:
    """The model in what ``Accelerator.save_state`` writes, where something was registered beside it."""
    if not _is_model(weights.where) or not exists(beside(weights.where, _REGISTERED)):
        return None
    note = (
        f"an average that was registered for checkpointing is in {_REGISTERED}, or in the next of that name"
    )
    return Recognised("accelerate", (_all("weights", "unknown", weights),), notes=(note,))


def diffusers(weights: Checkpoint) -> Recognised | None:
    """A model folder of diffusers; ``EMAModel.save_pretrained`` adds its own settings to the config."""
    if weights.format not in ("safetensors", "pytorch"):
        return None
    config = _json_beside(weights.where, "config.json")
    if "_diffusers_version" not in config:
        return None
    model = f"{config.get('_class_name')}, diffusers {config['_diffusers_version']}"
    if not {"decay", "optimization_step", "update_after_step"} <= set(config):
        note = "a model of diffusers says nothing of averaging unless EMAModel.save_pretrained wrote it"
        return Recognised("diffusers", (_all("weights", "unknown", weights),), notes=(model, note))
    step, decay, notes = diffusers_schedule(config)
    average = _all("average", "average", weights)
    return Recognised("diffusers", (average,), step, step, decay, (model, *notes))


def paddle(weights: Checkpoint) -> Recognised | None:
    """Files of Paddle by their endings: ``.pdopt``, and the pair ``NAME.pdparams`` and ``NAME.pdema``.

    PaddleDetection exchanges the pair on purpose, so that what one deploys is the average. A ``.pdparams``
    alone may hold either. PaddleNLP's zero-cost checkpoints have an average in ``ema….pdopt``.
    """
    if weights.format != "paddle":
        return None
    stem, _, ending = weights.where.rpartition(".")
    name = stem.replace("\\", "/").rpartition("/")[2]
    if ending == "pdopt":
        return _zero_cost(weights) if _ZERO_COST.match(name) else _all_optimizer(weights)
    flat = weights.slots.keys() <= mapping(tree_of(weights)).keys()
    if ending not in ("pdparams", "pdema") or not flat:
        return None
    if not exists(f"{stem}.pdema") or not exists(f"{stem}.pdparams"):
        note = "beside a .pdema file it would be the average; alone nothing says whether it is"
        found = divided(_all("weights", "unknown", weights))
        return found or Recognised("paddle", (_all("weights", "unknown", weights),), notes=(note,))
    if ending == "pdparams":
        notes = (f"PaddleDetection keeps the average here; the raw model is {name}.pdema",)
        return Recognised("PaddleDetection", (_all("average", "average", weights),), notes=notes)
    notes = (f"PaddleDetection keeps the raw model here; the average is {name}.pdparams",)
    return Recognised("PaddleDetection", (_all("raw", "raw", weights),), notes=notes)


def _all_optimizer(weights: Checkpoint) -> Recognised:
    return Recognised("paddle", (Part("optimizer", "optimizer", "", dict(weights.slots)),))


def _zero_cost(weights: Checkpoint) -> Recognised:
    """One rank's average: the float32 parameters by their names in the model, the others' master weights."""
    tree = mapping(tree_of(weights))
    named = {str(name): slot for name, slot in tree.items() if isinstance(slot, LazyTensor)}
    masters = tensors_in(tree.get("master_weights"))
    notes = ("an average by the name of its file; it is one rank's share",)
    if masters:
        notes += ("master weights have the names of Paddle's parameters, which fit no layer's state_dict",)
    return Recognised("PaddleNLP", (Part("average", "average", "", named | masters, notes),))


def step_beside(where: str) -> Step | None:
    """The step in ``trainer_state.json``, which the Trainers of Hugging Face and PaddleNLP write."""
    number = whole(_json_beside(where, _TRAINER_STATE).get("global_step"))
    return None if number is None else Step(number, _TRAINER_STATE)


def _all(name: str, role: Role, weights: Checkpoint) -> Part:
    return unwrapped(Part(name, role, "", dict(weights.slots)))


def _is_model(where: str) -> bool:
    return _MODEL.match(where.replace("\\", "/").rpartition("/")[2]) is not None


def _json_beside(where: str, name: str) -> Mapping[str, Any]:
    path = beside(where, name)
    if not exists(path):
        return {}
    with open_source(path) as source:
        if source.size > _LIMIT:
            return {}
        text = source.read(0, source.size)
    try:
        return mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
