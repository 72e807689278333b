"""Opening a Lightning checkpoint with an average, without Lightning."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from polyak.errors import CheckpointError
from polyak.torch import EMA
from polyak.trainers._averaging import arguments_in
from polyak.trainers._common import EMAOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

KEY = "polyak"  # in a checkpoint: {"state_dict": "raw", "ema": the state}; "raw" is what `state_dict` holds


def key_of(name: str) -> str:
    """The key of the average of this name in a checkpoint."""
    return f"{KEY}.{name}" if name else KEY


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    name: str = "",
    weights_only: bool = True,
    **options: Unpack[EMAOptions],
) -> EMA:
    """Read a checkpoint: the raw weights into ``model``, the average into the EMA that is returned.

    From there ``ema.save("average.safetensors")``, ``ema.copy_to()`` or ``ema.module``.

    Args:
        path: written while ``WeightAveraging`` was among the callbacks.
        model: the module, built as for training.
        name: of the ``WeightAveraging``, where the run had several.
        weights_only: refuse a file that holds Python objects, as ``torch.load`` does.
        options: ``include``, ``exclude``, ``buffers``, ``dtype`` … as passed to ``WeightAveraging``.

    Returns:
        The average, ready to continue.

    Raises:
        CheckpointError: the file holds no average, or does not match the model or the options.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    if key_of(name) not in checkpoint:
        others = [key.removeprefix(KEY).removeprefix(".") for key in checkpoint if key.startswith(KEY)]
        raise CheckpointError(
            f"{path} holds no average of the name {name!r}, but of {', '.join(map(repr, others))}: set name=…"
            if others
            else f"{path} holds no average of polyak. Save while WeightAveraging is among the callbacks."
        )
    state = checkpoint[key_of(name)]["ema"]
    if "file" in state:
        raise CheckpointError(
            f"{path} does not hold its average, which was sharded: {key_of(name)}.safetensors, after the "
            "same name, does. Make polyak.EMA(model, …) with the decay of the run, and load that file."
        )
    model.load_state_dict(checkpoint["state_dict"])
    decays, options = arguments_in(state, options)
    ema = EMA(model, decays, **options)
    ema.load_state_dict(state)
    return ema
