"""The copy that holds the averages."""

from __future__ import annotations

import copy

import torch
from torch import nn


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that can be updated anywhere, also when validation under inference mode makes it."""
    with torch.inference_mode(False):
        return copy.deepcopy(model)


def without_gradients(module: nn.Module) -> nn.Module:
    """The module, its parameters needing no gradient; a copy of TorchScript has some that are no leaves."""
    for parameter in module.parameters():
        parameter.detach_()
    return module
