"""The average inside the live layer, for a while: each tensor is pointed at the average's memory.

Nothing is copied where dtype and place agree; elsewhere the live tensor gets a cast of the average.
What ``paddle.jit.to_static`` made of the layer reads the same tensors, so it sees the average too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from paddle import Tensor

from polyak.core.live import claim
from polyak.core.plan import Plan
from polyak.paddle.tensors import alias, cast, laid_out_as, to


def swap_in(plan: Plan[Tensor], averages: Mapping[str, Tensor], undo: ExitStack) -> None:
    """Put the averages into the live layer; unwinding ``undo`` takes them out again.

    The way back is noted before each tensor is touched, so an exception at any point restores all.

    Raises:
        SwapError: another average is in some of these tensors.
    """
    entries = [entry for entry in plan.entries.values() if entry.name in averages]
    claim({id(tensor): entry.name for entry in entries for tensor in entry.tensors}, undo)
    for entry in entries:
        average = averages[entry.name]
        for live in entry.tensors:
            undo.callback(_point, live, live.detach())  # the same memory, which it keeps alive
            _point(live, laid_out_as(live, alias(to(cast(average, live.dtype), live.place))))


def _point(live: Tensor, memory: Tensor) -> None:
    live.data = memory
