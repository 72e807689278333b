"""Swapping averages into the live layer and back: each live tensor is set to the average's memory.

Nothing is copied where dtype and place agree; otherwise the live tensor gets a cast of the average.
A layer compiled by ``paddle.jit.to_static`` reads the same tensors, so it uses the average too.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

from paddle import Tensor

from polyak._core.change_detection import AttributeSnapshot, snapshot_attributes
from polyak._core.swap_guard import NOTHING, Changed, Swap
from polyak._core.tensor_map import TensorMap
from polyak.paddle.tensors import alias, cast, laid_out_as, to


class Swapper:
    """Makes a new ``LayerSwap`` each time; see ``polyak._core.framework.Swapper``."""

    def swap(
        self,
        plan: TensorMap[Tensor],
        track: str,
        averages: Mapping[str, Tensor],
        eval_tensors: Mapping[str, Tensor],
    ) -> Swap:
        return LayerSwap(plan, eval_tensors)

    def forget(self) -> None:
        """Nothing is cached."""


class LayerSwap:
    """A swap of one track's averages into the live layer; see ``polyak._core.swap_guard.Swap``.

    Args:
        plan: the layer's tensors.
        averages: their replacements, by name.
    """

    def __init__(self, plan: TensorMap[Tensor], averages: Mapping[str, Tensor]) -> None:
        entries = [entry for entry in plan.entries.values() if entry.name in averages]
        self.names = {id(live): entry.name for entry in entries for live in entry.tensors}
        self._lives = [live for entry in entries for live in entry.tensors]
        self._raw = [live.detach() for live in self._lives]  # the same memory, which it keeps alive
        # Paddle does not count BatchNorm's writes, so buffers, which are small, are compared.
        self._buffers = [live for e in entries if e.kind == "buffer" for live in e.tensors]
        self._values: list[Tensor] = []
        self._noted: AttributeSnapshot | None = None
        shown = [(averages[entry.name], live) for entry in entries for live in entry.tensors]
        self._averages = [
            laid_out_as(live, alias(to(cast(average, live.dtype), live.place))) for average, live in shown
        ]

    def swap_in(self) -> None:
        for live, average in zip(self._lives, self._averages, strict=True):
            _point(live, average)

    def note(self) -> None:
        values = [live.clone() for live in self._buffers]
        self._noted, self._values = snapshot_attributes((_version, _dtype), self._lives), values

    def changed(self) -> Changed:
        if self._noted is None:
            return NOTHING
        (versions, dtypes), lives = self._noted.values, self._lives
        # layer.to(dtype=…) changes what the layer points at, an alias of the average, and shows in its dtype.
        here = [
            live.data_ptr() == average.data_ptr() and live.dtype == dtype
            for live, average, dtype in zip(lives, self._averages, dtypes, strict=True)
        ]
        replaced = [self.names[id(t)] for t, same in zip(lives, here, strict=True) if not same]
        in_place = zip(lives, versions, here, strict=True)
        written = [t for t, version, same in in_place if same and t.inplace_version != version]
        kept = zip(self._buffers, self._values, strict=True)
        buffers = [self.names[id(t)] for t, old in kept if t.shape == old.shape and not _same(t, old)]
        parameters = [self.names[id(t)] for t in written if not any(t is b for b in self._buffers)]
        return Changed(parameters, [name for name in buffers if name not in replaced], replaced)

    def swap_out(self) -> None:
        for live, raw in zip(self._lives, self._raw, strict=True):
            _point(live, raw)


_version = attrgetter("inplace_version")
_dtype = attrgetter("dtype")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bool((one == other).all())


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory
