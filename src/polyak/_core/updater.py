"""What carries an update out; each framework has its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

# Updates in which some θ was not finite, and in how many of them each tensor was.
Skipped: TypeAlias = tuple[int, dict[str, int]]


class Updater(Protocol):
    """Every average of one plan, behind one ``update``."""

    @property
    def name(self) -> str:
        """The engines in use, and why no faster ones are."""
        ...

    def update(self, betas: Sequence[float], step: int) -> None:
        """θ into every average with the composed decay of each track, and buffers copied.

        Raises:
            NonFiniteError: under "raise", before anything is changed.
        """
        ...

    def applied(self, step: int) -> bool | None:
        """After an interrupted update: whether the averages took it, copied buffers then as well.

        None if some of them did and others may not have.
        """
        ...

    def capturing(self) -> bool:
        """Whether the device is recording a graph, so that an update can only be recorded."""
        ...

    def wait(self) -> None:
        """Wait for updates in flight.

        Raises:
            Exception: what one of them raised.
        """
        ...

    def skipped(self) -> Skipped:
        """The counts so far. Synchronises with the device."""
        ...
