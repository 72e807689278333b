"""Parts of a model chosen by name, as ema-pytorch does it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from polyak._core.tensor_map import Role, TensorEntry
from polyak.dropin._follower import Holder, inexact


@dataclass(frozen=True)
class Names:
    """The role of each tensor of a module by any of its names, with wrapper prefixes or without.

    copied: not averaged.  ignored, beginnings: left alone.
    """

    copied: Collection[str]
    ignored: Collection[str]
    beginnings: tuple[str, ...]

    def __call__(self, holder: Holder, entry: TensorEntry[Tensor]) -> Role:
        names = entry.names
        if isinstance(holder, nn.Module):
            parameters = holder.named_parameters(remove_duplicate=False)
            named = chain(parameters, holder.named_buffers(remove_duplicate=False))
            names += [name for name, tensor in named if any(tensor is mine for mine in entry.tensors)]
        role = self.role(names)
        return role if role != "average" or inexact(entry.live) else "copy"

    def role(self, names: Collection[str]) -> Role:
        if any(name in self.ignored or name.startswith(self.beginnings) for name in names):
            return "share"
        return "copy" if any(name in self.copied for name in names) else "average"


class ByName:
    """The iterators by name that EMA and KarrasEMA share."""

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
