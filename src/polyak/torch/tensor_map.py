"""The tensors of a module: found once, by name, and checked for changes at the cost of a cheap call each.

Names are the model's own, without the prefixes of wrappers (``module.``, ``_orig_mod.`` …). A tensor with
several names is planned once, under the first. Entries refer to the model's own tensor objects, not to
detached aliases, so no update can write to memory that the model no longer uses. Of a sharded tensor an entry
has the piece that is here too.
"""

# pyright: reportPrivateUsage=false
# A module's own dictionaries have no public names, and its public generators cost more than an update.

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from polyak._core.change_detection import UnchangedCheck, snapshot_attributes, snapshot_dicts
from polyak._core.tensor_map import (
    BufferKind,
    Kind,
    ModelTensor,
    Selection,
    TensorEntry,
    nested,
    planned,
)
from polyak._core.tensor_map import TensorMap as BaseTensorMap
from polyak._wrappers import CHILDREN
from polyak.errors import ConfigError, PlanError
from polyak.torch._sharding.kinds import check_torch, fsdp_modules, is_dtensor
from polyak.torch.tensors import holds_values, unchanged_check

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from polyak._core.sharded_files import Piece
    from polyak.torch._sharding.layout import ShardedPiece
    from polyak.torch._sharding.stream import Ranks

_RUNNING_STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_variance")  # torch, Keras


class TensorMap(BaseTensorMap[Tensor]):
    """The tensors of one model, by name, with a check for changes.

    Args:
        model: any module, wrapped or not.
        selection: globs and buffer policy.
        averaged: entries averaged so far; they stay averaged, even if renamed or frozen later.
        mesh: the processes that divide the averages of this replicated model; None if each keeps all of them.

    Raises:
        PlanError: a tensor is not initialised yet, or sharded in a way that cannot be averaged.
        ConfigError: a mesh is to divide a model that is sharded already.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        averaged: Sequence[TensorEntry[Tensor]] = (),
        mesh: DeviceMesh | None = None,
    ) -> None:
        everything = modules_of(model)
        self.mesh, self.fsdp_modules = mesh, fsdp_modules(everything)
        self.reshard()
        modules = dict(walk(model))
        _refuse_torchscript(modules)
        _refuse_flat_shards(everything)
        _refuse_partitioned(modules)
        kept = {entry.name for entry in averaged} | {id(t) for entry in averaged for t in entry.tensors}
        self.entries = entries(modules, selection, kept)
        _refuse_sparse(self.entries)
        if mesh is not None:
            _divide(self.entries, mesh)
        self._dtensors = list(filter(is_dtensor, self.tensors()))
        self._locals = list(map(_local, self._dtensors))
        unique = {id(module): module for module in modules.values()}.values()
        self.contents = snapshot_dicts(
            store
            for m in unique
            for store in (m._parameters, m._buffers, m._modules)  # pyright: ignore[reportPrivateUsage]
        )
        self.unmoved = unchanged_check(self.memories())
        shared = [e for e in self.entries.values() if e.kind == "parameter" and e.role == "share"]
        frozen = [t for entry in shared for t in entry.tensors if not t.requires_grad]
        self.untrained = snapshot_attributes((_requires_grad,), frozen)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {
            "mesh": self.mesh,
            "fsdp_modules": [],
            "_dtensors": [],
            "_locals": [],
        }

    @property
    def pieces(self) -> dict[str, ShardedPiece]:
        """Of the tensors that are not whole here, by name."""
        named = {name: entry.piece for name, entry in self.entries.items()}
        return {name: cast("ShardedPiece", piece) for name, piece in named.items() if piece is not None}

    @property
    def ranks(self) -> Ranks | None:
        if not (pieces := self.pieces):
            return None
        from polyak.torch._sharding.layout import ranks_of  # see ``kinds``
        from polyak.torch._sharding.stream import Ranks

        return Ranks.between(ranks_of(pieces.values()))

    def reshard(self) -> None:
        """Put the sharded parameters back into modules that hold whole ones.

        ``fully_shard`` leaves whole parameters after a forward pass without a backward one, and where it was
        told not to reshard. They are copies, which no optimizer writes.
        """
        for module in self.fsdp_modules:
            module.reshard()

    def stale(self) -> bool:
        if self.fsdp_modules and super().stale():
            self.reshard()
        return super().stale()

    def memories(self) -> list[Tensor]:
        return [_local(tensor) if is_dtensor(tensor) else tensor for tensor in self.tensors()]

    def unchanged(self, tensors: UnchangedCheck) -> UnchangedCheck:
        return self.with_pieces(super().unchanged(tensors))

    def with_pieces(self, check: UnchangedCheck) -> UnchangedCheck:
        """The check, and whether DTensors still have their pieces."""
        if not self._dtensors:
            return check
        # ``.to(dtype)`` keeps a DTensor and replaces its piece.
        dtensors, pieces = self._dtensors, self._locals
        return lambda: all(map(is_, map(_local, dtensors), pieces)) and check()


_requires_grad = attrgetter("requires_grad")
_local = attrgetter("_local_tensor")


class NotAveraged(nn.Module):
    """A module that does not belong to the model around it where that is averaged: a teacher in its student.

    A copy of the model on averaged tensors has None in its place.
    """


def unwrap(module: nn.Module) -> nn.Module:
    """The module that DDP, ``torch.compile``, FSDP or activation checkpointing wrapped."""
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = cast(nn.Module, module.module)
        elif inner := [child for key, child in module._modules.items() if key in CHILDREN]:
            module = cast(nn.Module, inner[0])
        else:
            return module


def walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All submodules without wrappers, by the prefix of their tensors' names."""
    module = unwrap(module)
    yield prefix, module
    for key, child in module._modules.items():
        if child is not None and not isinstance(child, NotAveraged):
            yield from walk(child, f"{prefix}{key}.")


def modules_of(module: nn.Module) -> list[nn.Module]:
    """All submodules with their wrappers; of those that are not averaged only the outermost.

    ``module.modules()`` would ask a teacher inside for its module, which may be the one being made.
    """
    return nested(module, lambda one: () if isinstance(one, NotAveraged) else one._modules.values())


def _refuse_torchscript(modules: dict[str, nn.Module]) -> None:
    for prefix, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise PlanError(
                f"{prefix[:-1] or 'the model'} is TorchScript, whose tensors live outside Python. "
                "Average the module it was made from, and script that."
            )


def _refuse_flat_shards(modules: Iterable[nn.Module]) -> None:
    """Refuse shards that are ranges of one flat tensor, whose parameters cannot be told apart."""
    if any("_fsdp_wrapped_module" in module._modules for module in modules):
        raise PlanError(
            "the model is wrapped by FullyShardedDataParallel, whose shards are ranges of one flat tensor. "
            "Shard it with torch.distributed.fsdp.fully_shard instead, its successor, which polyak averages."
        )


def _refuse_partitioned(modules: dict[str, nn.Module]) -> None:
    for prefix, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None and "ds_id" in vars(parameter):
                raise PlanError(
                    f"{prefix}{key} was partitioned by DeepSpeed ZeRO-3 (it has ds_id), which keeps its "
                    "values elsewhere. Use ZeRO-1 or -2, or torch.distributed.fsdp.fully_shard, which shards "
                    "as much."
                )


def _divide(entries: dict[str, TensorEntry[Tensor]], mesh: DeviceMesh) -> None:
    """Leave each process its rows of every averaged parameter; one number is averaged by all of them."""
    from polyak.torch._sharding.layout import rows_of

    for entry in entries.values():
        if entry.piece is not None:
            raise ConfigError(
                f"shard= divides the average of a model that is whole in each process, and {entry.name} is "
                "sharded already: its average is too. Leave shard= out."
            )
        if entry.role == "average" and entry.kind == "parameter" and entry.live.dim() > 0:
            entry.piece = rows_of(entry.live, mesh)


def _refuse_sparse(planned: dict[str, TensorEntry[Tensor]]) -> None:
    for entry in planned.values():
        if entry.role == "average" and not _has_address(entry.live):
            raise PlanError(
                f"{entry.name} is {entry.live.layout}: only dense tensors are averaged. Leave it out with "
                f'exclude="{entry.name}".'
            )


def entries(
    modules: dict[str, nn.Module], selection: Selection, kept: Collection[str | int] = ()
) -> dict[str, TensorEntry[Tensor]]:
    """The tensors of modules by name. ``kept``: names and ids of those averaged whether trained or not."""
    return planned(_model_tensors(modules), selection, _requires_grad, kept)


def _model_tensors(modules: dict[str, nn.Module]) -> Iterator[ModelTensor[Tensor]]:
    for prefix, module in modules.items():
        kinds: tuple[tuple[Kind, dict[str, Tensor | None]], ...] = (
            ("parameter", module._parameters),  # pyright: ignore[reportAssignmentType]
            ("buffer", module._buffers),
        )
        for kind, store in kinds:
            for key, tensor in store.items():
                if tensor is not None:
                    name, temporary = prefix + key, key in module._non_persistent_buffers_set
                    piece = _piece_of(tensor, name)
                    identity = _identity(tensor if piece is None else piece.tensor, tensor, name)
                    sort = _buffer_kind(module, key)
                    yield ModelTensor(name, kind, tensor, identity, sort, not temporary, piece)


def _piece_of(tensor: Tensor, name: str) -> Piece[Tensor] | None:
    if not is_dtensor(tensor):
        return None
    check_torch(f"{name} is a DTensor")
    from polyak.torch._sharding.layout import piece_of  # see ``kinds``

    return piece_of(tensor, name)


def _buffer_kind(module: nn.Module, key: str) -> BufferKind:
    """The kind of buffer, by its name and its neighbours in the module."""
    if key in ("_u", "_v") or (key.endswith(("_u", "_v")) and f"{key[:-2]}_orig" in module._parameters):
        return "vector"
    return "statistic" if key in _RUNNING_STATISTICS else "other"


def _identity(tensor: Tensor, owner: Tensor, name: str) -> object:
    """Equal for tied tensors, those that share one memory under several objects or names.

    Args:
        tensor: the values here.
        owner: the model's tensor, which a piece without elements is told apart by.
        name: for errors.
    """
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise PlanError(f"{name} is not initialised yet: run the model once before averaging it.")
    if tensor.device.type == "meta":
        raise PlanError(f"{name} is on the meta device and holds no values: materialise the model first.")
    if tensor.numel() == 0 or not _has_address(tensor):
        return id(owner)
    if tensor.data_ptr() == 0:  # an engine would follow the pointer
        raise PlanError(
            f"{name} is a {type(tensor).__name__}, whose values are in other tensors, as quantised ones are. "
            f'Leave it out with exclude="{name}".'
        )
    if not holds_values(tensor):  # an engine would read beyond the end
        raise PlanError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on a storage of only "
            f"{tensor.untyped_storage().nbytes()} bytes: restore its size before the next update."
        )
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _has_address(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided  # sparse tensors have several storages
