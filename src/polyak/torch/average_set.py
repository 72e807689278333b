"""``AverageSet`` of torch modules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

from polyak._core.average_set import AverageSet
from polyak._core.tensor_map import Selection, TensorEntry
from polyak._core.tensors import TensorOps
from polyak.errors import ConfigError
from polyak.schedules import Decay
from polyak.torch import tensors
from polyak.torch.clone import clone_onto
from polyak.torch.store import Settings, TensorStore
from polyak.torch.swap import Swapper
from polyak.torch.tensor_map import TensorMap, unwrap, walk
from polyak.torch.update import Updates

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def average_set(
    model: ModuleT,
    decays: Mapping[str, Decay],
    selection: Selection,
    settings: Settings,
    updates: Updates,
) -> AverageSet[ModuleT, Tensor]:
    """The averages of a module; see ``AverageSet``.

    Raises:
        ConfigError: the model is not a module, or a glob matches nothing.
        PlanError: nothing to average.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"model is a {type(model).__name__}: give the nn.Module itself, not its parameters. "
            "Layers of PaddlePaddle go to polyak.paddle.EMA."
        )
    parts = Modules[ModuleT](), TensorStore(settings), updates, Swapper()
    return AverageSet(model, decays, selection, settings.policy, *parts)


class Modules(Generic[ModuleT]):
    """Reads and copies whole modules; see ``polyak._core.framework.Models``."""

    ops: TensorOps[Tensor] = tensors

    def tensor_map(
        self, model: ModuleT, selection: Selection, averaged: Sequence[TensorEntry[Tensor]] = ()
    ) -> TensorMap:
        return TensorMap(model, selection, averaged)

    def clone(
        self, model: ModuleT, tensors: Mapping[int, Tensor]
    ) -> tuple[ModuleT, list[tuple[Tensor, Tensor]]]:
        return clone_onto(model, tensors)

    def extra_states(self, model: ModuleT) -> dict[str, Tensor]:
        """The results of ``get_extra_state`` that are tensors; a safetensors file cannot store others."""
        states = {
            f"{prefix}_extra_state": module.get_extra_state()
            for prefix, module in walk(model)
            if type(module).get_extra_state is not nn.Module.get_extra_state
        }
        left = [name for name, state in states.items() if not isinstance(state, Tensor)]
        if left:
            warnings.warn(
                f"{', '.join(left[:8])}: not in the file, which can store tensors only. Load it with "
                "load_state_dict(…, strict=False), or save ema.module.state_dict() with torch.save.",
                stacklevel=5,
            )
        return {name: state for name, state in states.items() if isinstance(state, Tensor)}

    def class_name(self, model: ModuleT) -> str:
        return type(unwrap(model)).__name__
