"""The average inside the live layer, for a while: each tensor is pointed at the average's memory.

Nothing is copied where dtype and place agree; elsewhere the live tensor gets a cast of the average.
What ``paddle.jit.to_static`` made of the layer reads the same tensors, so it sees the average too.
"""

from __future__ import annotations

from collections.abc import Mapping

from paddle import Tensor

from polyak.core.live import Exchange
from polyak.core.plan import Plan
from polyak.paddle.tensors import alias, cast, laid_out_as, to


class LayerExchange(Exchange):
    """The averages of one track on their way into the live layer.

    Args:
        plan: the layer's tensors.
        averages: what is to take their place, by name.
        track: whose they are.
        owner: likewise.
    """

    def __init__(self, plan: Plan[Tensor], averages: Mapping[str, Tensor], track: str, owner: object) -> None:
        entries = [entry for entry in plan.entries.values() if entry.name in averages]
        super().__init__({id(live): entry.name for entry in entries for live in entry.tensors}, track, owner)
        self._lives = [live for entry in entries for live in entry.tensors]
        self._raw = [live.detach() for live in self._lives]  # the same memory, which it keeps alive
        shown = [(averages[entry.name], live) for entry in entries for live in entry.tensors]
        self._averages = [
            laid_out_as(live, alias(to(cast(average, live.dtype), live.place))) for average, live in shown
        ]

    def put_in(self) -> None:
        for live, average in zip(self._lives, self._averages, strict=True):
            _point(live, average)

    def take_out(self) -> None:
        for live, raw in zip(self._lives, self._raw, strict=True):
            _point(live, raw)


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory
