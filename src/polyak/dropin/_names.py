"""Parts of a model chosen by name, as ema-pytorch does it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from polyak._core.tensor_map import Role, TensorEntry
from polyak.dropin._follower import inexact


@dataclass(frozen=True)
class Names:
    """The role of each tensor of a module, under any name it has there, wrapper prefixes or not.

    copied: not averaged.  ignored, beginnings: left as they are.
    """

    copied: Collection[str]
    ignored: Collection[str]
    beginnings: tuple[str, ...]

    def __call__(self, module: nn.Module, entry: TensorEntry[Tensor]) -> Role:
        named = chain(
            module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
        )
        mine = set(map(id, entry.tensors))
        role = self.role([*entry.names, *(n for n, t in named if id(t) in mine)])
        return role if role != "average" or inexact(entry.live) else "copy"

    def role(self, names: Collection[str]) -> Role:
        if any(name in self.ignored or name.startswith(self.beginnings) for name in names):
            return "share"
        return "copy" if any(name in self.copied for name in names) else "average"


class ByName:
    """What EMA and KarrasEMA find by name."""

    parameter_names: set[str]
    buffer_names: set[str]

    def _find_names(self, module: nn.Module) -> None:
        self.parameter_names = {name for name, p in module.named_parameters() if inexact(p)}
        self.buffer_names = {name for name, b in module.named_buffers() if inexact(b)}

    def get_params_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Floating parameters by name."""
        return ((name, p) for name, p in model.named_parameters() if name in self.parameter_names)

    def get_buffers_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Floating buffers by name."""
        return ((name, b) for name, b in model.named_buffers() if name in self.buffer_names)


def everything(module: nn.Module, entry: TensorEntry[Tensor]) -> Role:
    """The role of each tensor where no name is special."""
    return "average" if inexact(entry.live) else "copy"


def device_of(module: nn.Module) -> torch.device:
    """Where a module is."""
    return next(module.parameters()).device


@contextmanager
def in_evaluation(module: nn.Module) -> Generator[nn.Module]:
    """In evaluation mode for a while; afterwards each part is in the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield module.eval()
    finally:
        for part, training in modes:
            part.training = training
