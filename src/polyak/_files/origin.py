"""Where the weights of a file come from, if not from a training run: a part of the header's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class FileShare(NamedTuple):
    """One file of a merge: its name, the training step it is of (None if unknown), its weight."""

    name: str
    step: int | None
    weight: float


@dataclass(frozen=True)
class Origin:
    """Where the weights of a file come from.

    Args:
        library: that wrote the checkpoint they were converted from; "" if unknown, None if they were not.
        updates: of the average in that checkpoint, if it counted them.
        files: of a merge whose profile is unknown; None of anything else.
        taken_as_raw: the merged files did not say that they are raw, whoever merged them did.
    """

    library: str | None = None
    updates: int | None = None
    files: Sequence[FileShare] | None = None
    taken_as_raw: bool = False

    def to_state(self) -> dict[str, Any]:
        """The entries of a header's state, plain values only.

        Examples:
            >>> Origin("timm", updates=3).to_state()
            {'library': 'timm', 'updates': 3}
            >>> Origin.from_state(Origin("timm", updates=3).to_state())
            Origin(library='timm', updates=3, files=None, taken_as_raw=False)
        """
        state: dict[str, Any] = {}
        if self.library is not None:
            state["library"] = self.library
        if self.updates is not None:
            state["updates"] = self.updates
        if self.files is not None:
            state["weights_of_files"] = [list(one) for one in self.files]
        if self.taken_as_raw:
            state["taken_as_raw"] = True
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Origin:
        """What a header's state says of the origin; entries of other kinds or malformed ones say nothing."""
        library, updates = state.get("library"), state.get("updates")
        return cls(
            library=library if isinstance(library, str) else None,
            updates=updates if type(updates) is int and updates >= 0 else None,
            files=_files(state.get("weights_of_files")),
            taken_as_raw=state.get("taken_as_raw") is True,
        )


def _files(rows: Any) -> tuple[FileShare, ...] | None:
    try:
        return tuple(FileShare(str(name), step, float(weight)) for name, step, weight in rows)
    except (TypeError, ValueError):
        return None
