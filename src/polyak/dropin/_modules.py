"""Copying and moving modules of averages, and their counters."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from polyak._type_guards import is_dict, is_sequence

_version = attrgetter("_version")  # counts the writes to a tensor


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that can be updated anywhere, even if made under inference mode.

    torch does not copy tensors with a gradient history, such as the weight that ``weight_norm`` or
    ``spectral_norm`` sets in a module at each call: the copy has their values.
    """
    with torch.inference_mode(False):
        computed = (tensor for module in model.modules() for tensor in _computed(vars(module)))
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _computed(attributes: Mapping[str, Any]) -> Iterator[Tensor]:
    """Tensors with a gradient history in attributes, lists and dicts (an LSTM has a list)."""
    for value in attributes.values():
        for one in value.values() if is_dict(value) else value if is_sequence(value) else (value,):
            if isinstance(one, Tensor) and not one.is_leaf:
                yield one


def without_gradients(module: nn.Module) -> nn.Module:
    """The module, with parameters that need no gradient; in a TorchScript copy some are not leaves."""
    for parameter in module.parameters():
        parameter.detach_()
    return module


def device_of(module: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next(module.parameters()).device


@contextmanager
def in_evaluation(module: nn.Module) -> Generator[nn.Module]:
    """A block in evaluation mode; afterwards each submodule is back in its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield module.eval()
    finally:
        for part, training in modes:
            part.training = training


class HostCounter:
    """The value of a counter that must be a buffer, as in the originals' checkpoints.

    It is read from its device only after another write: reading a GPU buffer at each update would wait for
    the device.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._written, self._value = -1, 0

    def of(self, buffer: Tensor) -> int:
        """The buffer's value."""
        if buffer is not self._buffer or _version(buffer) != self._written:
            self._remember(buffer, int(buffer.item()))
        return self._value

    def set(self, buffer: Tensor, value: int) -> None:
        """Write the buffer."""
        buffer.fill_(value)
        self._remember(buffer, value)

    def _remember(self, buffer: Tensor, value: int) -> None:
        self._buffer, self._written, self._value = buffer, _version(buffer), value
