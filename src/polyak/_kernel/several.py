"""Updates of several operations, between which an interrupt may come."""

from __future__ import annotations


class Several:
    """An engine whose update is several operations.

    began, ended: the steps of the last update that did.
    """

    began = ended = 0

    def applied(self, step: int) -> bool | None:
        """Whether the update of this step was applied; None if an interrupt came in its middle."""
        return step == self.ended or (None if step == self.began else False)
