"""The interface of a framework's updater."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

# Updates in which some θ was not finite, and the number of them per tensor.
Skipped: TypeAlias = tuple[int, dict[str, int]]


class Updater(Protocol):
    """Updates all averages of one plan."""

    @property
    def name(self) -> str:
        """The engines in use, and why not faster ones."""
        ...

    def update(self, weights: Sequence[float], step: int) -> None:
        """Update every average with the weight of θ, 1-β of its schedule, and copy buffers.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        ...

    def applied(self, step: int) -> bool | None:
        """Whether an interrupted update changed all averages and buffers; None if only some of them."""
        ...

    def capturing(self) -> bool:
        """Whether the device is recording a graph, so that an update can only be recorded."""
        ...

    def wait(self) -> None:
        """Wait for updates in flight.

        Raises:
            Exception: an error of one of them.
        """
        ...

    def skipped(self) -> Skipped:
        """The counts so far. Synchronises with the device."""
        ...
