"""Averages that began with NaN or infinity, which no update would remove."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic

from polyak._core.nonfinite import NonFinitePolicy, refuse_start
from polyak._core.tensor_map import TensorEntry
from polyak._core.tensors import T, TensorOps
from polyak._core.track import Track

if TYPE_CHECKING:
    from polyak._core.framework import TensorStore

_LOOK = 100  # see ``fill``


class UnfitAverages(Generic[T]):
    """The names of the averages that still contain some.

    Args:
        policy: what to do with non-finite elements of θ.
    """

    def __init__(self, policy: NonFinitePolicy) -> None:
        self.names: set[str] = set()
        self._policy = policy
        self._filled = 0  # updates with such tensors

    def check_start(
        self, entries: Sequence[TensorEntry[T]], store: TensorStore[T], ops: TensorOps[T]
    ) -> None:
        """Check that averages may begin at these entries' values.

        Raises:
            NonFiniteError: one is not finite, under "raise".
        """
        if self._policy == "raise":
            finite = [ops.all_finite([store.initial(entry.live)[0]])[0] for entry in entries]
            refuse_start([entry.name for entry, fit in zip(entries, finite, strict=True) if not fit])

    def look(self, names: Collection[str], tracks: Iterable[Track[T]], ops: TensorOps[T]) -> None:
        """Remember which of these averages already contain NaN or infinity."""
        if self._policy == "skip":
            places = [(name, track.tensors[name]) for track in tracks for name in names]
            finite = ops.all_finite([tensor for _, tensor in places])
            self.names = {name for (name, _), fit in zip(places, finite, strict=True) if not fit}

    def fill(
        self, tracks: Collection[Track[T]], entries: Mapping[str, TensorEntry[T]], ops: TensorOps[T]
    ) -> None:
        """Set elements of the averages that are still NaN or infinite to θ.

        Whether any are left is checked after 1, 2, 4, 8 … updates and then each hundredth: the check waits
        for the device.
        """
        for name in self.names:
            for track in tracks:
                ops.fill_nonfinite(track.tensors[name], track.residuals.get(name), entries[name].live)
        self._filled += 1
        power_of_two = self._filled & (self._filled - 1) == 0
        if power_of_two or self._filled % _LOOK == 0:
            self.look(self.names, tracks, ops)
