"""``AverageSet`` of Paddle layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from paddle import Tensor, nn

from polyak._core.average_set import AverageSet
from polyak._core.tensor_map import Selection, TensorEntry
from polyak._core.tensors import TensorOps
from polyak.errors import ConfigError
from polyak.paddle import tensors
from polyak.paddle.clone import clone_onto
from polyak.paddle.store import Settings, TensorStore
from polyak.paddle.swap import Swapper
from polyak.paddle.tensor_map import TensorMap, unwrap
from polyak.paddle.update import Updates
from polyak.schedules import ByName, Decay

LayerT = TypeVar("LayerT", bound=nn.Layer)


def average_set(
    layer: LayerT, decays: Mapping[str, Decay | ByName], selection: Selection, settings: Settings
) -> AverageSet[LayerT, Tensor]:
    """The averages of a layer; see ``AverageSet``.

    Raises:
        ConfigError: the layer is none, a glob matches nothing, or the storage needs a missing engine.
        PlanError: nothing to average.
    """
    if not isinstance(layer, nn.Layer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"layer is a {type(layer).__name__}: give the paddle.nn.Layer itself, not its parameters. "
            "polyak.paddle.ExponentialMovingAverage takes a list of parameters, polyak.EMA torch modules."
        )
    parts = Layers[LayerT](), TensorStore(settings), Updates(settings), Swapper()
    return AverageSet(layer, decays, selection, settings.policy, *parts)


class Layers(Generic[LayerT]):
    """Reads and copies whole layers; see ``polyak._core.framework.Models``."""

    ops: TensorOps[Tensor] = tensors

    def tensor_map(
        self, layer: LayerT, selection: Selection, averaged: Sequence[TensorEntry[Tensor]]
    ) -> TensorMap:
        return TensorMap(layer, selection, averaged)

    def map_of_other(self, layer: LayerT, selection: Selection) -> TensorMap:
        return TensorMap(layer, selection)

    def copy_over(self, source: TensorEntry[Tensor], tensor: Tensor, target: TensorEntry[Tensor]) -> None:
        for place in target.tensors:
            tensors.overwrite(place, tensor)

    def in_state(self, entry: TensorEntry[Tensor], tensor: Tensor) -> Tensor:
        return tensor

    def from_state(self, entry: TensorEntry[Tensor], tensor: Tensor) -> Tensor:
        return tensor

    def clone(
        self, layer: LayerT, tensors: Mapping[int, Tensor]
    ) -> tuple[LayerT, list[tuple[Tensor, Tensor]]]:
        return clone_onto(layer, tensors)

    def extra_states(self, layer: LayerT) -> dict[str, Tensor]:
        return {}  # Paddle has no such thing

    def class_name(self, layer: LayerT) -> str:
        return type(unwrap(layer)).__name__
