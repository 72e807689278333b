"""What only the files beside a file of weights tell: a config, or the other half of a pair."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from polyak.checkpoints.foreign.averagers import diffusers_schedule
from polyak.checkpoints.foreign.parts import Part, Recognised, Role, mapping, unwrapped
from polyak.checkpoints.source import beside, exists, open_source
from polyak.checkpoints.weights import Weights
from polyak.errors import CheckpointError

_POLYAK = "polyak.safetensors"  # in a checkpoint of Hugging Face's Trainer
_REGISTERED = "custom_checkpoint_0.pkl"  # in what Accelerate saves, beside the model
_MODEL = re.compile(r"(adapter_|pytorch_)?model\b")
_CONFIG_LIMIT = 1 << 24  # bytes; configs take a few thousand


def transformers(weights: Weights) -> Recognised | None:
    """The model in a checkpoint of Hugging Face's ``Trainer`` whose training polyak averaged."""
    if not _is_model(weights.where) or not exists(beside(weights.where, _POLYAK)):
        return None
    note = f"the model that trains; its average is in the folder average, and with its history in {_POLYAK}"
    return Recognised("transformers", (_all("raw", "raw", weights),), notes=(note,))


def accelerate(weights: Weights) -> Recognised | None:
    """The model in what ``Accelerator.save_state`` writes, where something was registered beside it."""
    if not _is_model(weights.where) or not exists(beside(weights.where, _REGISTERED)):
        return None
    note = (
        f"an average that was registered for checkpointing is in {_REGISTERED}, or in the next of that name"
    )
    return Recognised("accelerate", (_all("weights", "unknown", weights),), notes=(note,))


def diffusers(weights: Weights) -> Recognised | None:
    """A model folder of diffusers; ``EMAModel.save_pretrained`` adds its own settings to the config."""
    if weights.format not in ("safetensors", "pytorch"):
        return None
    config = _config_beside(weights.where)
    if "_diffusers_version" not in config:
        return None
    model = f"{config.get('_class_name')}, diffusers {config['_diffusers_version']}"
    if not {"decay", "optimization_step", "update_after_step"} <= set(config):
        note = "a model of diffusers says nothing of averaging unless EMAModel.save_pretrained wrote it"
        return Recognised("diffusers", (_all("weights", "unknown", weights),), notes=(model, note))
    step, decay, notes = diffusers_schedule(config)
    average = _all("average", "average", weights)
    return Recognised("diffusers", (average,), step, step, decay, (model, *notes))


def paddle_detection(weights: Weights) -> Recognised | None:
    """The pair ``NAME.pdparams`` and ``NAME.pdema``, in which the former is the average.

    PaddleDetection exchanges them on purpose, so that what one deploys is the average. A ``.pdparams``
    alone may hold either.
    """
    if weights.format != "paddle":
        return None
    stem, _, ending = weights.where.rpartition(".")
    if ending == "pdopt":
        part = Part("optimizer", "optimizer", "", dict(weights.slots))
        return Recognised("paddle", (part,))
    if ending not in ("pdparams", "pdema"):
        return None
    if not exists(f"{stem}.pdema") or not exists(f"{stem}.pdparams"):
        note = "beside a .pdema file it would be the average; alone nothing says whether it is"
        return Recognised("paddle", (_all("weights", "unknown", weights),), notes=(note,))
    name = stem.replace("\\", "/").rpartition("/")[2]
    if ending == "pdparams":
        notes = (f"PaddleDetection keeps the average here; the raw model is {name}.pdema",)
        return Recognised("PaddleDetection", (_all("average", "average", weights),), notes=notes)
    notes = (f"PaddleDetection keeps the raw model here; the average is {name}.pdparams",)
    return Recognised("PaddleDetection", (_all("raw", "raw", weights),), notes=notes)


def _all(name: str, role: Role, weights: Weights) -> Part:
    return unwrapped(Part(name, role, "", dict(weights.slots)))


def _is_model(where: str) -> bool:
    return _MODEL.match(where.replace("\\", "/").rpartition("/")[2]) is not None


def _config_beside(where: str) -> Mapping[str, Any]:
    path = beside(where, "config.json")
    if not exists(path):
        return {}
    with open_source(path) as source:
        if source.size > _CONFIG_LIMIT:
            return {}
        text = source.read(0, source.size)
    try:
        return mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
