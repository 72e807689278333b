"""The handle of a function that an EMA calls after each update."""

from __future__ import annotations

from collections.abc import Callable


class Watch:
    """The handle of a function that is called after each update, until ``remove()``."""

    def __init__(self, watchers: list[Watch], call: Callable[[], None]) -> None:
        self._watchers, self.call = watchers, call
        watchers.append(self)

    def remove(self) -> None:
        """Stop calling. A second call does nothing."""
        if self in self._watchers:
            self._watchers.remove(self)
