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


def load(path: str | os.PathLike[str], model: nn.Module, *, weights_only: bool = True, **options: Any) -> EMA:
    """Read a checkpoint: the raw weights into ``model``, the average into the EMA that is returned.

    From there ``ema.save("average.safetensors")``, ``ema.copy_to()`` or ``ema.module``.

    Args:
        path: written while ``WeightAverage`` was among the callbacks.
        model: the module, built as for training.
        weights_only: refuse a file that holds Python objects, as ``torch.load`` does.
        options: ``include``, ``exclude``, ``buffers``, ``dtype`` … that ``WeightAverage`` was given.

    Returns:
        The average, ready to go on.

    Raises:
        CheckpointError: the file holds no average, or does not match the model or the options.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    if KEY not in checkpoint:
        raise CheckpointError(
            f"{path} holds no average of polyak. Save with save_weights_only=False while WeightAverage is "
            "among the callbacks."
        )
    model.load_state_dict(checkpoint["state_dict"])
    return begun_from(checkpoint[KEY]["ema"], model, options)
