"""The copy that holds the averages."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that can be updated anywhere, also when validation under inference mode makes it.

    torch copies no tensor that was computed with gradients, such as the weight that ``weight_norm`` or
    ``spectral_norm`` leaves in a module at each call: of those the copy has the values.
    """
    with torch.inference_mode(False):
        computed = (tensor for module in model.modules() for tensor in _computed(vars(module)))
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _computed(attributes: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors with a history among attributes and in the lists and dicts there (an LSTM has a list)."""
    for value in attributes.values():
        inner: Any = value.values() if isinstance(value, dict) else value  # pyright: ignore[reportUnknownVariableType]
        for one in cast("Iterable[Any]", inner) if isinstance(value, dict | list | tuple) else (value,):
            if isinstance(one, Tensor) and not one.is_leaf:
                yield one


def without_gradients(module: nn.Module) -> nn.Module:
    """The module, its parameters needing no gradient; a copy of TorchScript has some that are no leaves."""
    for parameter in module.parameters():
        parameter.detach_()
    return module
