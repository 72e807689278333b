"""The tensors of a layer: found once, by name, and checked for changes at the cost of two cheap calls each.

Names are the layer's own, without the prefixes of wrappers (``_layers.``). Running statistics of BatchNorm
are untrained parameters in Paddle; here they are buffers, as in other frameworks.

Every tensor assigned to a layer becomes a non-persistable buffer, such as the weight that ``weight_norm``
computes in each forward. These are not part of a plan, or every update would need a new one.
"""

# pyright: reportPrivateUsage=false
# A layer's own dictionaries have no public names, and its public generators cost more than an update.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, cast

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.meta_parallel.meta_parallel_base import MetaParallelBase
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage2 import GroupShardedStage2
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3
from paddle.nn.layer.norm import _BatchNormBase

from polyak._core.change_detection import snapshot_attributes, snapshot_dicts
from polyak._core.tensor_map import BufferKind, Kind, ModelTensor, Selection, TensorEntry, nested, planned
from polyak._core.tensor_map import TensorMap as BaseTensorMap
from polyak.errors import PlanError
from polyak.paddle.tensors import holds_values, unchanged_check

_STAGE_3 = (
    'GroupShardedStage3 (level="p_g_os"): each process holds slices of the parameters, which polyak does not '
    'average. level="os_g" or "os" keeps parameters whole, and divides gradients and the optimizer\'s state.'
)
_RUNNING_STATISTICS = ("_mean", "_variance")
_SPECTRAL_VECTORS = ("weight_u", "weight_v")


class TensorMap(BaseTensorMap[Tensor]):
    """The tensors of one layer, by name, with a check for changes.

    Args:
        layer: any layer, wrapped or not.
        selection: globs and buffer policy.
        averaged: entries averaged so far; they stay averaged, even if renamed or frozen later.

    Raises:
        PlanError: a tensor is not initialised yet, or to be averaged or copied and sparse or sharded.
    """

    def __init__(
        self, layer: nn.Layer, selection: Selection, averaged: Sequence[TensorEntry[Tensor]] = ()
    ) -> None:
        layers = dict(_walk(layer))
        kept = {entry.name for entry in averaged} | {id(t) for entry in averaged for t in entry.tensors}
        self.entries = planned(_model_tensors(layers), selection, _trained, kept)
        for entry in self.entries.values():
            _refuse_scattered(entry)
        unique = {id(layer): layer for layer in layers.values()}.values()
        stores = [(one, stores_of(one)) for one in unique]
        temporary = {id(store.buffers): _non_persistent(one) for one, store in stores}
        self.contents = snapshot_dicts(
            (each for _, store in stores for each in store),
            changing=lambda store, key: key in temporary.get(id(store), ()),
        )
        self.unmoved = unchanged_check(self.tensors())
        shared = [e for e in self.entries.values() if e.kind == "parameter" and e.role == "share"]
        frozen = [t for entry in shared for t in entry.tensors if t.stop_gradient]
        self.untrained = snapshot_attributes((_stop_gradient,), frozen)


_stop_gradient = attrgetter("stop_gradient")


class NotAveraged(nn.Layer):
    """A layer that does not belong to the model around it where that is averaged: a teacher in its student.

    A copy of the model on averaged tensors has None in its place.
    """


class Stores(NamedTuple):
    """The dictionaries of one layer, which it reads and writes itself."""

    parameters: dict[str, Tensor | None]
    buffers: dict[str, Tensor | None]
    layers: dict[str, nn.Layer | None]


def stores_of(layer: nn.Layer) -> Stores:
    """The layer's own dictionaries."""
    untyped: Any = layer  # Paddle types them as dictionaries of anything
    return Stores(untyped._parameters, untyped._buffers, untyped._sub_layers)


def unwrap(layer: nn.Layer) -> nn.Layer:
    """The layer that ``DataParallel``, fleet or ``group_sharded_parallel`` wrapped.

    Raises:
        PlanError: its parameters are slices.
    """
    while isinstance(layer, paddle.DataParallel | MetaParallelBase | GroupShardedStage2 | GroupShardedStage3):
        if isinstance(layer, GroupShardedStage3):
            raise PlanError(f"the layer is wrapped by {_STAGE_3}")
        name = "_layer" if isinstance(layer, GroupShardedStage2) else "_layers"
        layer = cast(nn.Layer, getattr(layer, name))
    return layer


def _walk(layer: nn.Layer, prefix: str = "") -> Iterator[tuple[str, nn.Layer]]:
    layer = unwrap(layer)
    yield prefix, layer
    for key, child in stores_of(layer).layers.items():
        if child is not None and not isinstance(child, NotAveraged):
            yield from _walk(child, f"{prefix}{key}.")


def layers_of(layer: nn.Layer) -> list[nn.Layer]:
    """All sublayers with their wrappers; of those that are not averaged only the outermost.

    ``layer.sublayers()`` would ask a teacher inside for its layer, which may be the one being made.
    """

    def inside(one: nn.Layer) -> Iterable[nn.Layer | None]:
        return () if isinstance(one, NotAveraged) else stores_of(one).layers.values()

    return nested(layer, inside)


def _model_tensors(layers: dict[str, nn.Layer]) -> Iterator[ModelTensor[Tensor]]:
    for prefix, layer in layers.items():
        for key, tensor in _state_of(layer).items():
            if tensor is not None:
                name = prefix + key
                yield ModelTensor(name, _kind(layer, key), tensor, _identity(tensor, name), _buffer_kind(key))


def _state_of(layer: nn.Layer) -> dict[str, Tensor | None]:
    """Parameters and persistable buffers of this layer alone."""
    parameters, buffers, _ = stores_of(layer)
    temporary = _non_persistent(layer)
    return parameters | {key: buffer for key, buffer in buffers.items() if key not in temporary}


def _non_persistent(layer: nn.Layer) -> set[str]:
    """Non-persistable buffers; may include names of parameters that once were such buffers."""
    return cast("set[str]", layer._non_persistable_buffer_names_set)


def _kind(layer: nn.Layer, key: str) -> Kind:
    untrained = _RUNNING_STATISTICS if isinstance(layer, _BatchNormBase | nn.BatchNorm) else ()
    if isinstance(layer, nn.SpectralNorm):
        untrained = _SPECTRAL_VECTORS
    return "buffer" if key in layer._buffers or key in untrained else "parameter"


def _buffer_kind(key: str) -> BufferKind:
    if key.endswith(("_u", "_v")):
        return "vector"
    return "statistic" if key in _RUNNING_STATISTICS else "other"


def _trained(tensor: Tensor) -> bool:
    return not tensor.stop_gradient


def _refuse_scattered(entry: TensorEntry[Tensor]) -> None:
    live = entry.live
    if entry.role == "share":
        return
    if getattr(live, "is_distributed", False):  # set by fleet's tensor-parallel layers, on parameters alone
        what = "a piece of a tensor-parallel layer (mp_degree), the rest is in other processes: polyak"
    elif not live.is_dense():
        what = "sharded: polyak" if live.is_dist() else "sparse: Paddle"
    else:
        return
    raise PlanError(
        f'{entry.name} is {what} cannot copy it. exclude="{entry.name}" leaves it the layer\'s own.'
    )


def _identity(tensor: Tensor, name: str) -> object:
    """Equal for tied tensors, those that share one memory under several objects or names."""
    if hasattr(tensor, "fw_storage"):  # how stage 3 itself marks the parameters it has cut
        raise PlanError(f"{name} belongs to {_STAGE_3}")
    if not holds_values(tensor):
        raise PlanError(
            f"{name} is not initialised yet: call its initialize(), or make the layer outside of LazyGuard."
        )
    if not tensor.is_dense() or 0 in tensor.shape:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(cast("list[int]", tensor.shape)), str(tensor.place)
