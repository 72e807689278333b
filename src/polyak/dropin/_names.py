"""The common base of ema-pytorch's classes: selection by name, and the module of averages."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from polyak._core.tensor_map import Role, TensorEntry
from polyak.dropin._follower import Follower, Holder, everything, inexact
from polyak.dropin._modules import HostCounter, copied, without_gradients
from polyak.errors import ConfigError


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
        # A vector of spectral norm: a mean of unit vectors is shorter than one.
        only_copied = entry.kind == "buffer" and entry.saved and entry.role == "copy"
        return "copy" if role == "average" and (only_copied or not inexact(entry.live)) else role

    def role(self, names: Collection[str]) -> Role:
        if any(name in self.ignored or name.startswith(self.beginnings) for name in names):
            return "share"
        return "copy" if any(name in self.copied for name in names) else "average"


class Named(nn.Module):
    """The common base of EMA and KarrasEMA: the module of averages, its counters, roles by name."""

    initted: Tensor
    step: Tensor
    ema_model: nn.Module | None
    parameter_names: set[str]
    buffer_names: set[str]

    def _adopt(self, module: nn.Module, names: Names) -> None:
        """Let a module hold the averages, found by name."""
        self.ema_model = without_gradients(module)
        self.parameter_names = {name for name, p in module.named_parameters() if inexact(p)}
        self.buffer_names = {name for name, b in module.named_buffers() if inexact(b)}
        self._whole, self._follower = Follower(roles=everything), Follower(roles=names)
        self._back = Follower(roles=everything)

    def _count_from_zero(self) -> None:
        self._steps, self._started = HostCounter(), HostCounter()
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model that is averaged."""

    @property
    def _averages(self) -> nn.Module:
        if self.ema_model is None:
            raise ConfigError("lazy_init_ema=True: there is no average before the first update().")
        return self.ema_model

    def eval(self) -> Any:
        """``ema_model`` in evaluation mode."""
        return self._averages.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._averages(*args, **kwargs)

    def restore_ema_model_device(self) -> None:
        """Move the averages to the device of this module's counters."""
        self._averages.to(self.initted.device)

    def copy_params_from_model_to_ema(self) -> None:
        """Restart from the current model."""
        self._whole.copy(self._averages, self.model)

    def copy_params_from_ema_to_model(self) -> None:
        """Overwrite the model with its average."""
        self._back.copy(self.model, self._averages)

    def get_params_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Floating parameters by name."""
        return ((name, p) for name, p in model.named_parameters() if name in self.parameter_names)

    def get_buffers_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Floating buffers by name."""
        return ((name, b) for name, b in model.named_buffers() if name in self.buffer_names)


def ema_model_for(ema_model: nn.Module | Callable[[], nn.Module] | None, model: nn.Module) -> nn.Module:
    """The module for the averages: the one given, the result of a function, or a copy of the model."""
    if ema_model is None:
        return copied(model)
    return ema_model if isinstance(ema_model, nn.Module) else ema_model()
