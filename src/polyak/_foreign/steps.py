"""At which training step a checkpoint was written: by what it says inside, or by an unambiguous name."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import NamedTuple

from polyak._foreign.nodes import Node, json_beside, whole

# Keys under which training loops keep their count of optimizer steps. "epoch" counts something else.
_KEYS = (
    "global_step",
    "step",
    "iter",
    "iteration",
    "train_step",
    "meta.iter",  # MMEngine
    "batch_idx_train",  # icefall
    "optimizer_history.-1.num_updates",  # fairseq
    "trainer_state.global_step",
    "train_state.step",  # torchtitan
)
_TRAINER_STATE = "trainer_state.json"
# A number that its name calls a step, with nothing after it that would make it another: no fraction, no "k".
_LABELLED = re.compile(
    r"(?<![a-z])(?:step|iter|iteration|itr)[-_= ]?(\d+)(?![\da-z]|\.\d)|^checkpoint-(\d+)$", re.IGNORECASE
)
_SETTING = re.compile(
    r"(warmup|max|num|total|per|every|eval|save|decay|time|inference|sampling)[-_ ]?$", re.IGNORECASE
)


class Step(NamedTuple):
    """A training step and where it was found, for people."""

    number: int
    source: str


def step_inside(root: Node) -> Step | None:
    """The step that a training checkpoint counts.

    Args:
        root: all of the file; not a state dict, whose tensors can have such names.
    """
    for key in _KEYS:
        number = root.at(key).count
        if number is not None:
            return Step(number, key)
    return None


def step_beside(where: str) -> Step | None:
    """The step in ``trainer_state.json``, which the Trainers of Hugging Face and PaddleNLP write."""
    number = whole(json_beside(where, _TRAINER_STATE).get("global_step"))
    return None if number is None else Step(number, _TRAINER_STATE)


def step_in_name(where: str) -> Step | None:
    """The step in the name of a file or else of its folder, if exactly one number there is called a step.

    Examples:
        >>> step_in_name("epoch=3-step=1200-v1.ckpt")
        Step(number=1200, source='file name')
        >>> step_in_name("run/checkpoint-500/model.safetensors")
        Step(number=500, source='folder name')
        >>> step_in_name("best-epoch=3-val_loss=0.51.ckpt")
    """
    path = PurePath(where.replace("\\", "/"))
    for name, source in ((path.name, "file name"), (path.parent.name, "folder name")):
        found = {
            int(match[1] or match[2])
            for match in _LABELLED.finditer(name)
            if not _SETTING.search(name[: match.start()])
        }
        if found:
            return Step(found.pop(), source) if len(found) == 1 else None
    return None
