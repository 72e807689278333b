"""One layer's averages as Paddle's tensors, and the engines that update them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paddle import Tensor, nn

from polyak._core import average_set as core
from polyak._core.swap_guard import Exchange
from polyak._core.tensor_map import Selection, TensorEntry
from polyak._core.tensors import TensorOps
from polyak._core.track import Track
from polyak._core.updater import Skipped
from polyak.errors import ConfigError
from polyak.paddle import tensors
from polyak.paddle.clone import clone_onto
from polyak.paddle.engine import Pair, Updater
from polyak.paddle.store import Settings
from polyak.paddle.swap import LayerExchange
from polyak.paddle.tensor_map import TensorMap, unwrap
from polyak.schedules import Decay


class AverageSet(core.AverageSet[nn.Layer, Tensor]):
    """See ``core.AverageSet``.

    Args:
        layer: the layer to follow.
        decays: the tracks, by name.
        selection: which of its tensors.
        settings: how they are kept and updated.

    Raises:
        ConfigError: the layer is none, a glob matches nothing, or the storage asked for is not there.
        PlanError: nothing to average.
    """

    ops: TensorOps[Tensor] = tensors

    def __init__(
        self, layer: nn.Layer, decays: Mapping[str, Decay], selection: Selection, settings: Settings
    ) -> None:
        if not isinstance(layer, nn.Layer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"layer is a {type(layer).__name__}: give the paddle.nn.Layer itself, not its parameters. "
                "polyak.paddle.ExponentialMovingAverage takes a list of parameters, polyak.EMA torch modules."
            )
        self.settings = settings
        super().__init__(layer, decays, selection, settings.policy)

    def planned(self, selection: Selection, averaged: Sequence[TensorEntry[Tensor]] = ()) -> TensorMap:
        return TensorMap(self.model, selection, averaged)

    def plan_of(self, model: nn.Layer) -> TensorMap:
        return TensorMap(model, self._selection)

    def stored(self, live: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.settings.stored(live)

    def on_device(self, tensor: Tensor, entry: TensorEntry[Tensor], copy: bool) -> Tensor:
        if copy or tensor.place != entry.live.place:
            tensor = tensors.copied_to(tensor, entry.live.place)
        return tensors.laid_out_as(entry.live, tensor)

    def copied(self, entry: TensorEntry[Tensor], kept: Tensor | None) -> Tensor:
        live = entry.live
        if kept is None or _form(kept) != _form(live):
            return tensors.laid_out_as(live, live.detach().clone())
        tensors.overwrite(kept, live)  # so that a layer made on it goes on following
        return kept

    def make_updater(
        self, averaged: Sequence[TensorEntry[Tensor]], copied: Sequence[TensorEntry[Tensor]], skipped: Skipped
    ) -> Updater:
        tracks = self.tracks.values()
        pairs = [
            Pair(
                e.name,
                e.live,
                tuple([t.tensors[e.name] for t in tracks]),
                tuple([t.residuals[e.name] for t in tracks if e.name in t.residuals]),
            )
            for e in averaged
            if 0 not in e.live.shape
        ]
        copies = [(self.copies[e.name], e.live) for e in copied]
        return Updater(pairs, copies, self.settings, skipped)

    def exchange(self, track: Track[Tensor]) -> Exchange:
        return LayerExchange(self.plan, self.eval_tensors(track), track.name, self)

    def own(self, entry: TensorEntry[Tensor]) -> Tensor:
        return tensors.duplicate(entry.live)

    def cloned(self, tensors: Mapping[str, Tensor]) -> tuple[nn.Layer, list[tuple[Tensor, Tensor]]]:
        places = {id(t): tensors[e.name] for e in self.plan.entries.values() for t in e.tensors}
        return clone_onto(self.model, places)

    def _kind_of_model(self) -> str:
        return type(unwrap(self.model)).__name__


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.place, tensor.strides if tensor.is_dense() else None
