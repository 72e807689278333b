"""``AverageSet`` of torch modules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from polyak._core.average_set import AverageSet
from polyak._core.tensor_map import Selection, TensorEntry
from polyak._core.tensors import TensorOps
from polyak.errors import ConfigError, PlanError
from polyak.schedules import ByName, Decay
from polyak.torch import tensors
from polyak.torch._sharding.kinds import check_torch, fsdp_modules, is_dtensor
from polyak.torch.clone import clone_onto
from polyak.torch.store import Settings, TensorStore
from polyak.torch.swap import Swapper
from polyak.torch.tensor_map import TensorMap, modules_of, unwrap, walk
from polyak.torch.update import Updates

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from polyak.torch._sharding.layout import ShardedPiece

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def average_set(
    model: ModuleT,
    decays: Mapping[str, Decay | ByName],
    selection: Selection,
    settings: Settings,
    updates: Updates,
    shard: object = None,
) -> AverageSet[ModuleT, Tensor]:
    """The averages of a module; see ``AverageSet``.

    Args:
        model, decays, selection, settings, updates: see there.
        shard: the processes that divide the averages among themselves, if any.

    Raises:
        ConfigError: the model is not a module, or a glob matches nothing.
        PlanError: nothing to average.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"model is a {type(model).__name__}: give the nn.Module itself, not its parameters. "
            "Layers of PaddlePaddle go to polyak.paddle.EMA."
        )
    modules = Modules[ModuleT](None if shard is None else _mesh(shard, model))
    parts = modules, TensorStore(settings), updates, Swapper()
    return AverageSet(model, decays, selection, settings.policy, *parts)


def _mesh(shard: object, model: nn.Module) -> DeviceMesh:
    check_torch("shard=")
    from polyak.torch._sharding.layout import mesh_of  # see ``_sharding.kinds``

    devices = [parameter.device for parameter in model.parameters()]
    return mesh_of(shard, devices[0] if devices else torch.device("cpu"))


class Modules(Generic[ModuleT]):
    """Reads and copies whole modules; see ``polyak._core.framework.Models``.

    Args:
        mesh: the processes that divide the averages of a replicated model; None if each has all of them.
    """

    ops: TensorOps[Tensor] = tensors

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self._mesh = mesh

    def tensor_map(
        self, model: ModuleT, selection: Selection, averaged: Sequence[TensorEntry[Tensor]]
    ) -> TensorMap:
        return TensorMap(model, selection, averaged, self._mesh)

    def map_of_other(self, model: ModuleT, selection: Selection) -> TensorMap:
        return TensorMap(model, selection)

    def copy_over(self, source: TensorEntry[Tensor], tensor: Tensor, target: TensorEntry[Tensor]) -> None:
        if source.piece is None and target.piece is None:
            for place in target.tensors:
                tensors.overwrite(place, tensor)
            return
        from polyak.torch._sharding.layout import copy_between  # see ``_sharding.kinds``

        copy_between(source.piece, tensor, target)

    def in_state(self, entry: TensorEntry[Tensor], tensor: Tensor) -> Tensor:
        if entry.piece is None:
            return tensor
        from polyak.torch._sharding.layout import as_dtensor  # see ``_sharding.kinds``

        return as_dtensor(cast("ShardedPiece", entry.piece), tensor)

    def from_state(self, entry: TensorEntry[Tensor], tensor: Tensor) -> Tensor:
        if entry.piece is None and not is_dtensor(tensor):
            return tensor
        from polyak.torch._sharding.layout import part_of  # see ``_sharding.kinds``

        return part_of(tensor, cast("ShardedPiece | None", entry.piece))

    def clone(
        self, model: ModuleT, tensors: Mapping[int, Tensor]
    ) -> tuple[ModuleT, list[tuple[Tensor, Tensor]]]:
        if self._mesh is not None or fsdp_modules(modules_of(model)):
            how = "fully_shard" if self._mesh is None else "shard="
            raise PlanError(
                f"ema.module: under {how} this process holds a part of the average, of which no module can "
                "be made. Evaluate in average_parameters(), or ema.copy_to() a second model."
            )
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
                stacklevel=8,  # the caller of save
            )
        return {name: state for name, state in states.items() if isinstance(state, Tensor)}

    def class_name(self, model: ModuleT) -> str:
        return type(unwrap(model)).__name__
