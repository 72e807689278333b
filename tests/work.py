"""Work counted instead of timed: a busy machine does as much as an idle one, only later."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest


def lines_run(run: Callable[[], object]) -> int:
    """How many lines of Python a call runs, each turn of a loop counted."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 counts a line of several calls more than once")
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
