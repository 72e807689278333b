"""Counters that must be buffers, because the originals' checkpoints hold them so."""

from __future__ import annotations

from torch import Tensor


class Known:
    """The value of a scalar buffer, fetched from its device only after somebody else wrote it.

    Testing a GPU buffer on the host at each update would wait for the device each time.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._version, self._value = -1, 0

    def of(self, buffer: Tensor) -> int:
        """The buffer's value."""
        if buffer is not self._buffer or buffer._version != self._version:  # pyright: ignore[reportPrivateUsage]
            self._remember(buffer, int(buffer.item()))
        return self._value

    def set(self, buffer: Tensor, value: int) -> None:
        """Write the buffer."""
        buffer.fill_(value)
        self._remember(buffer, value)

    def _remember(self, buffer: Tensor, value: int) -> None:
        self._buffer, self._version, self._value = buffer, buffer._version, value  # pyright: ignore[reportPrivateUsage]
