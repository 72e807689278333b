"""Parts of a model chosen by name, as ema-pytorch does it."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from polyak.core.plan import Entry, Role
from polyak.torch.mirror import Roles, inexact


@dataclass(frozen=True)
class Names:
    """copied: not averaged.  ignored, beginnings: left as they are."""

    copied: Collection[str]
    ignored: Collection[str]
    beginnings: tuple[str, ...]

    def role_in(self, module: nn.Module) -> Roles:
        """The role of each tensor of a module, under any name it has there, wrapper prefixes or not."""
        return _Roles(self, module)

    def role(self, names: Collection[str]) -> Role:
        if any(name in self.ignored or name.startswith(self.beginnings) for name in names):
            return "share"
        return "copy" if any(name in self.copied for name in names) else "average"


@dataclass(frozen=True)
class _Roles:
    names: Names
    module: nn.Module

    def __call__(self, entry: Entry[Tensor]) -> Role:
        named = chain(
            self.module.named_parameters(remove_duplicate=False),
            self.module.named_buffers(remove_duplicate=False),
        )
        mine = set(map(id, entry.tensors))
        role = self.names.role([entry.name, *entry.aliases, *(n for n, t in named if id(t) in mine)])
        return role if role != "average" or inexact(entry.live) else "copy"


def everything(entry: Entry[Tensor]) -> Role:
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
