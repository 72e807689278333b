"""Checkpoints of whole training runs, by the libraries that write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from polyak._files.source import beside, exists
from polyak._foreign.averagers import optimizer_in
from polyak._foreign.parts import (
    Part,
    Recognised,
    is_module,
    is_weights,
    mapping,
    part,
    whole,
)
from polyak._foreign.pickle_objects import Record
from polyak.errors import ConfigError
from polyak.schedules import Constant, Decay, Power


def timm(tree: Any, where: str) -> Recognised | None:
    """``timm.utils.CheckpointSaver``."""
    del where
    state = mapping(tree)
    if not {"arch", "state_dict", "version"} <= set(state) or not is_weights(state["state_dict"]):
        return None
    raw = part("raw", "raw", "state_dict", state["state_dict"])
    averages = tuple(
        part("average", "average", key, state[key])
        for key in ("state_dict_ema",)
        if is_weights(state.get(key))
    )
    decay, notes = _timm_decay(mapping(state.get("args"))) if averages else (None, ())
    notes = (f"architecture {state['arch']}, epoch {state.get('epoch')}", *notes)
    return Recognised("timm", (*averages, raw, *optimizer_in(state)), decay=decay, notes=notes)


def _timm_decay(args: Mapping[str, Any]) -> tuple[Decay | None, tuple[str, ...]]:
    beta = args.get("model_ema_decay")
    if not isinstance(beta, float):
        return None, ()
    if args.get("model_ema_warmup"):
        return None, (f"its arguments say model_ema_decay={beta}, with a warm-up",)
    try:
        return Constant(beta), ()
    except ConfigError:
        return None, (f"its arguments say model_ema_decay={beta}, which is no decay",)


def ultralytics(tree: Any, where: str) -> Recognised | None:
    """``BaseTrainer.save_model`` and YOLOv5's: models pickled whole, the average in half precision.

    ``strip_optimizer``, which ends a training, moves the average to ``model`` and sets the epoch to -1.
    """
    state = mapping(tree)
    models = {key: state[key] for key in ("ema", "model") if is_module(state.get(key))}
    if not models or not all(_is_yolo(model) for model in models.values()):
        return None
    stripped = "ema" not in models and state.get("epoch") == -1
    parts: list[Part] = []
    if "ema" in models:
        parts.append(part("average", "average", "ema", models["ema"]))
    if "model" in models and stripped:
        note = "the average, moved here by strip_optimizer when training ended"
        parts.append(part("average", "average", "model", models["model"], note))
    elif "model" in models:
        parts.append(part("raw", "raw", "model", models["model"]))
    kept = f"{PurePath(where).stem}.polyak.pt"
    if exists(beside(where, kept)):
        averaging = f"averaged by polyak: {kept} beside it says how, and has it in full precision"
    else:
        averaging = (
            "its trainer averages with Ramp(0.9999, tau=2000) unless told otherwise; the file does not say"
        )
    notes = (f"version {state.get('version')}, epoch {state.get('epoch')}", averaging)
    return Recognised(
        "ultralytics", (*parts, *optimizer_in(state)), updates=whole(state.get("updates")), notes=notes
    )


def edm2(tree: Any, where: str) -> Recognised | None:
    """A network snapshot of EDM2: a pickled model that carries the source of its own class.

    Its width σ_rel and the images seen stand in the file's name, where EDM2's own tools read them.
    """
    state = mapping(tree)
    model = state.get("ema")
    if not is_module(model) or not {"dataset_kwargs", "encoder", "loss_fn"} & set(state):
        return None
    notes = ["a model with the source code of its class, none of which was run"]
    decay: Decay | None = None
    named = re.search(r"-(\d{7})(?:-(\d\.\d+))?\.pkl$", PurePath(where).name)
    if named:
        notes.append(f"by its name after {int(named[1]):,} thousand images")
    if named and named[2]:
        try:
            decay = Power(sigma_rel=float(named[2]))
        except ConfigError:
            notes.append(f"by its name of σ_rel {named[2]}, which no average has")
    return Recognised("edm2", (part("average", "average", "ema", model),), decay=decay, notes=tuple(notes))


def _is_yolo(model: Any) -> bool:
    """Of the package, or of the repositories of YOLOv5 and those made from it, whose models are scripts."""
    return isinstance(model, Record) and (
        model.module.startswith("ultralytics.") or model.module in ("models.yolo", "models.common")
    )
