"""A Lightning checkpoint that holds an average, opened without Lightning."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from polyak.errors import CheckpointError
from polyak.torch import EMA
from polyak.trainers.common import begun_from

KEY = "polyak"  # in a checkpoint: {"state_dict": "raw", "ema": the state}, the former what `state_dict` holds


def key_of(name: str) -> str:
    """Where a checkpoint has the average of this name."""
    return f"{KEY}.{name}" if name else KEY


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    name: str = "",
    weights_only: bool = True,
    **options: Any,
) -> EMA:
    """Read a checkpoint: the raw weights into ``model``, the average into the EMA that is returned.

    From there ``ema.save("average.safetensors")``, ``ema.copy_to()`` or ``ema.module``.

    Args:
        path: written while ``WeightAverage`` was among the callbacks.
        model: the module, built as for training.
        name: of the ``WeightAverage``, where the run had several.
        weights_only: refuse a file that holds Python objects, as ``torch.load`` does.
        options: ``include``, ``exclude``, ``buffers``, ``dtype`` … that ``WeightAverage`` was given.

    Returns:
        The average, ready to go on.

    Raises:
        CheckpointError: the file holds no average, or does not match the model or the options.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    if key_of(name) not in checkpoint:
        others = [key.removeprefix(KEY).removeprefix(".") for key in checkpoint if key.startswith(KEY)]
        raise CheckpointError(
            f"{path} holds no average of the name {name!r}, but of {', '.join(map(repr, others))}: say name=…"
            if others
            else f"{path} holds no average of polyak. Save while WeightAverage is among the callbacks."
        )
    model.load_state_dict(checkpoint["state_dict"])
    return begun_from(checkpoint[key_of(name)]["ema"], model, options)
