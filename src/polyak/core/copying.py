"""Deep copies that share what refuses to be copied."""

from __future__ import annotations

import copy
from typing import Any


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy with a memo of what has its copy already; the value itself if any part of it refuses."""
    scratch = _Scratch(memo)
    try:
        twin = copy.deepcopy(value, scratch)
    except Exception:  # third-party attributes refuse in every way there is
        return value
    memo.update(scratch)
    return twin


class _Scratch(dict[int, Any]):
    """A memo on top of another, so that what a failed copy left behind can be dropped."""

    def __init__(self, known: dict[int, Any]) -> None:
        super().__init__()
        self._known = known

    def get(self, key: int, default: Any = None) -> Any:
        return super().get(key, self._known.get(key, default))

    def __missing__(self, key: int) -> Any:
        return self._known[key]
