"""What only the other files of a folder tell: a config, or the other half of a pair."""

from __future__ import annotations

from polyak._foreign.averagers import diffusers_decay, diffusers_settings
from polyak._foreign.copies import divided
from polyak._foreign.nodes import Node, json_beside, tensors_in
from polyak._foreign.parts import Part, Recognised
from polyak._foreign.producers import Producer, weights_at

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
    return Recognised("", (Part("average", "average", "", node.slots | masters, notes),))


def _is_flat(node: Node) -> bool:
    return node.file.slots.keys() <= node.keys.keys()


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
        notes=(lambda node: f"PaddleDetection keeps the average here; the raw model is {node.stem}.pdema",),
    ),
    Producer(
        "PaddleDetection",
        {"": "raw"},
        named=r".*\.pdema",
        beside="{stem}.pdparams",
        format="paddle",
        fits=_is_flat,
        notes=(
            lambda node: f"PaddleDetection keeps the raw model here; the average is {node.stem}.pdparams",
        ),
    ),
    Producer("paddle", _alone, named=r".*\.(pdparams|pdema)", format="paddle", fits=_is_flat),
)
