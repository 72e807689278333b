"""A row for each layout of complete files: training checkpoints, and files identified by their neighbours."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from polyak._files.header import KEY
from polyak._foreign.averagers import averages_in, diffusers_decay, diffusers_settings, state_at
from polyak._foreign.copies import divided
from polyak._foreign.nodes import Node, is_module, json_beside, tensors_in
from polyak._foreign.parts import Part, Recognised, completed, same_values
from polyak._foreign.pickle_objects import Record
from polyak._foreign.producers import Producer, decay_of, weights_at
from polyak.schedules import Constant, Decay, Power

# timm.utils.CheckpointSaver


def _timm_decay(node: Node) -> Decay | None:
    args = node.at("args")
    if args.at("model_ema_warmup").tree or not isinstance(args.at("model_ema_decay").tree, float):
        return None
    return decay_of(lambda: Constant(float(str(args.at("model_ema_decay").tree))))


def _timm_settings(node: Node) -> str:
    beta = node.at("args.model_ema_decay").tree
    if not node.at("state_dict_ema").is_weights or not isinstance(beta, float) or _timm_decay(node):
        return ""
    warmup = node.at("args.model_ema_warmup").tree
    return f"its arguments say model_ema_decay={beta}, {'with a warm-up' if warmup else 'which is no decay'}"


# Lightning's Trainer.save_checkpoint, with or without a callback that averages


def _polyak_callback(node: Node) -> Recognised | None:
    """The averages of polyak's callbacks, under "polyak" or, of several, under "polyak.NAME"."""
    raw = tuple(weights_at(node, "state_dict", "raw"))
    if not raw:
        return None
    found: list[Part] = []
    for one in node.children:
        state = state_at(one.at("ema")) if one.path.split(".")[0] == KEY else None
        name = one.path.removeprefix(KEY).removeprefix(".")
        averages = () if state is None else (completed(part, raw[0]) for part in state.parts)
        found += [replace(part, name=f"{name}-{part.name}" if name else part.name) for part in averages]
    return Recognised("", (*found, *raw)) if found else None


def _weight_averaging(node: Node) -> Recognised | None:
    """While the callback is active, ``state_dict`` is the average."""
    found = (*weights_at(node, "state_dict", "average"), *weights_at(node, "current_model_state", "raw"))
    if len(found) < 2:
        return None
    average, raw = found
    if same_values(average.tensors, raw.tensors):
        raw = raw.noted("equal to the average: Lightning copies it over the model when training ends")
    return Recognised("", (average, raw), updates=node.at("averaging_state.n_averaged").count)


def _other_average(node: Node) -> Recognised | None:
    """An average of an unknown callback, of a child module, or in NeMo's optimizer."""
    seen: set[int] = set()
    without = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "hyper_parameters")
    nodes = [one for one in node.children if one.path not in without]
    nodes += node.at("optimizer_states").items
    found = [one for each in nodes for one in averages_in(each, seen)]
    found = [one for one in found if any(part.role != "optimizer" for part in one.parts)]
    models = tuple(weights_at(node, "state_dict", "unknown"))
    if not found:
        return divided(models[0]) if models else None
    note = (
        "beside an average of a callback that may exchange the two when it saves: nothing says which this is"
    )
    models = tuple(one.noted(note) for one in models)
    only = found[0] if len(found) == 1 else Recognised("", ())
    return replace(only, parts=(*(part for one in found for part in one.parts), *models))


def _averaging_callback(node: Node) -> bool:
    pattern = re.compile(r"WeightAverag|EMA|MovingAverage|SWA", re.ASCII)
    return any(pattern.search(str(name)) for name in node.at("callbacks").keys)


# Ultralytics' BaseTrainer.save_model and YOLOv5's: models pickled whole, the average in half precision


def _is_yolo(node: Node) -> bool:
    """A file of the package, or of YOLOv5 and its derivatives, whose models are scripts."""
    models = [tree for key in ("ema", "model") if is_module(tree := node.at(key).tree)]
    modules = [one.module for one in models if isinstance(one, Record)]
    return bool(modules) and all(
        name.startswith("ultralytics.") or name in ("models.yolo", "models.common") for name in modules
    )


def _is_stripped_yolo(node: Node) -> bool:
    return _is_yolo(node) and not is_module(node.at("ema").tree) and node.at("epoch").tree == -1


def _ultralytics_schedule(node: Node) -> str:
    full = f"{node.stem}.polyak.pt"
    if node.has_beside(full):
        return f"averaged by polyak: {full} beside it says how, and has it in full precision"
    return "its trainer averages with Ramp(0.9999, tau=2000) by default; the file does not say"


# EDM2's network snapshots


def _is_edm2(node: Node) -> bool:
    return is_module(node.at("ema").tree) and any(map(node.has, ("dataset_kwargs", "encoder", "loss_fn")))


def _edm2_name(node: Node) -> tuple[str, str]:
    """The thousands of images and the width σ_rel, which only the file's name contains."""
    named = re.search(r"-(\d{7})(?:-(\d\.\d+))?\.pkl$", node.file_name)
    return (named[1], named[2] or "") if named else ("", "")


def _edm2_decay(node: Node) -> Decay | None:
    _, width = _edm2_name(node)
    return decay_of(lambda: Power(sigma_rel=float(width)))


def _edm2_images(node: Node) -> str:
    images, _ = _edm2_name(node)
    return f"by its name after {int(images):,} thousand images" if images else ""


def _edm2_width(node: Node) -> str:
    _, width = _edm2_name(node)
    return f"by its name of σ_rel {width}, which no average has" if width and not _edm2_decay(node) else ""


_VERSION = "version {version}, epoch {epoch}"
_lightning = partial(
    Producer,
    "lightning",
    marks=("pytorch-lightning_version", "state_dict"),
    notes=("version {pytorch-lightning_version}, epoch {epoch}",),
)
_MMENGINE = ("meta.mmengine_version", "state_dict")

TRAINING = (
    Producer(
        "timm",
        {"state_dict_ema": "average", "state_dict": "raw"},
        marks=("arch", "state_dict", "version"),
        decay=_timm_decay,
        notes=("architecture {arch}, epoch {epoch}", _timm_settings),
    ),
    _lightning(_polyak_callback),
    _lightning(_weight_averaging),
    _lightning(
        {"callbacks.*.average_model_state": "average", "state_dict": "raw"},
        fits=lambda node: node.at("callbacks.*.average_model_state").is_weights,
        updates="callbacks.*.n_averaged",
    ),
    _lightning(  # NeMo's EMA writes NAME.ckpt as ever, and NAME-EMA.ckpt, whose model is the average
        {"state_dict": "average"},
        named=r".*-EMA(\.[^.]*)?",
        why="an average by the name of its file, as NeMo calls it; the raw model is in the file without -EMA",
    ),
    _lightning(_other_average),
    _lightning(
        {"state_dict": "unknown"},
        fits=_averaging_callback,
        why="a weight averaging callback was there but at rest: after training state_dict is the average, "
        "before it began the raw model",
    ),
    _lightning({"state_dict": "raw"}, fits=lambda node: node.has("optimizer_states")),
    _lightning(
        {"state_dict": "unknown"},
        why="saved without the states of callbacks, which would say whether it was averaged",
    ),
    Producer(  # strip_optimizer, which ends a training, moves the average to ``model``, sets the epoch to -1
        "ultralytics",
        {"model": "average"},
        fits=_is_stripped_yolo,
        updates="updates",
        why="the average, moved here by strip_optimizer when training ended",
        notes=(_VERSION, _ultralytics_schedule),
    ),
    Producer(
        "ultralytics",
        {"ema": "average", "model": "raw"},
        fits=_is_yolo,
        updates="updates",
        notes=(_VERSION, _ultralytics_schedule),
    ),
    Producer(
        "edm2",
        {"ema": "average"},
        fits=_is_edm2,
        decay=_edm2_decay,
        notes=("a model with the source code of its class, none of which was run", _edm2_images, _edm2_width),
    ),
    Producer(
        "mmengine",
        {"state_dict": "average", "ema_state_dict.module.": "raw"},
        marks=(*_MMENGINE, "ema_state_dict"),
        updates="ema_state_dict.steps",
        notes=("EMAHook exchanges the two when it saves: ema_state_dict is the model that trains",),
    ),
    Producer(
        "mmengine",
        {"state_dict": "unknown"},
        marks=_MMENGINE,
        notes=(
            "the model that trains, or the average of an EMAHook if ema_state_dict was removed for "
            "publishing",
        ),
    ),
    Producer(
        "icefall",
        {"model_avg": "average", "model": "raw"},
        marks=("model", "model_avg", "batch_idx_train"),
        notes=("model_avg is the mean over training of the model every average_period batches",),
    ),
    Producer(
        "fairseq",
        {"extra_state.ema": "average", "extra_state.ema_fp32_params": "average", "model": "unknown"},
        marks=("model", "extra_state", "optimizer_history"),
        notes=(
            "model is the model that trains, or in a file of scripts/average_checkpoints.py the mean of "
            "several",
        ),
    ),
)

# Layouts identified by other files of the folder: a config, or the other file of a pair

_MODEL = r"(adapter_|pytorch_)?model\b.*"


def _diffusers_folder(node: Node) -> Recognised | None:
    """A model folder of diffusers; ``EMAModel.save_pretrained`` adds its own settings to the config."""
    config = Node(json_beside(node.file.where, "config.json"))
    if node.file.format not in ("safetensors", "pytorch") or not config.has("_diffusers_version"):
        return None
    model = f"{config.at('_class_name').tree}, diffusers {config.at('_diffusers_version').tree}"
    if not all(map(config.has, ("decay", "optimization_step", "update_after_step"))):
        note = "a model of diffusers says nothing of averaging unless EMAModel.save_pretrained wrote it"
        return Recognised("", tuple(weights_at(node, "", "unknown")), notes=(model, note))
    step = config.at("optimization_step").count
    return Recognised(
        "",
        tuple(weights_at(node, "", "average")),
        step,
        step,
        diffusers_decay(config),
        (model, diffusers_settings(config)),
    )


def _zero_cost(node: Node) -> Recognised:
    """One rank's average: the float32 parameters by their names in the model, the others' master weights."""
    masters = tensors_in(node.at("master_weights").tree)
    notes = ("an average by the name of its file; it is one rank's share",)
    if masters:
        notes += ("master weights have the names of Paddle's parameters, which fit no layer's state_dict",)
    return Recognised("", (Part("average", "average", "", node.tensors | masters, notes),))


def _is_flat(node: Node) -> bool:
    return node.file.tensors.keys() <= node.keys.keys()


def _alone(node: Node) -> Recognised | None:
    [part] = weights_at(node, "", "unknown")
    note = "beside a .pdema file it would be the average; alone nothing says whether it is"
    return divided(part) or Recognised("paddle", (part,), notes=(note,))


# PaddleDetection exchanges its pair of files on purpose, so that what one deploys is the average.
FOLDERS = (
    Producer(
        "transformers",
        {"": "raw"},
        named=_MODEL,
        beside="polyak.safetensors",
        notes=(
            "the model that trains; its average is in the folder average, and with its history in "
            "polyak.safetensors",
        ),
    ),
    Producer("diffusers", _diffusers_folder),
    Producer(
        "accelerate",
        {"": "unknown"},
        named=_MODEL,
        beside="custom_checkpoint_0.pkl",
        notes=(
            "an average that was registered for checkpointing is in custom_checkpoint_0.pkl, or in the next "
            "of that name",
        ),
    ),
    Producer("PaddleNLP", _zero_cost, named=r"ema([._-].*)?\.pdopt", format="paddle"),
    Producer("paddle", {"": "optimizer"}, named=r".*\.pdopt", format="paddle"),
    Producer(
        "PaddleDetection",
        {"": "average"},
        named=r".*\.pdparams",
        beside="{stem}.pdema",
        format="paddle",
        fits=_is_flat,
        notes=("PaddleDetection keeps the average here; the raw model is {stem}.pdema",),
    ),
    Producer(
        "PaddleDetection",
        {"": "raw"},
        named=r".*\.pdema",
        beside="{stem}.pdparams",
        format="paddle",
        fits=_is_flat,
        notes=("PaddleDetection keeps the raw model here; the average is {stem}.pdparams",),
    ),
    Producer("paddle", _alone, named=r".*\.(pdparams|pdema)", format="paddle", fits=_is_flat),
)
