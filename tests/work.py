"""Work counted instead of timed: a busy machine does as much as an idle one, only later."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_run(run: Callable[[], object]) -> int:
    """How many lines of Python a call runs, each turn of a loop counted."""
    count = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # what it frees may run lines too, of whatever ran before
    sys.settrace(line)
    try:
        run()
    finally:
        sys.settrace(before)
        gc.enable()
    return count
