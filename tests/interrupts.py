"""Interrupts at every line: what a Ctrl-C, or any other exception out of a signal handler, can hit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import polyak

SOURCES = str(Path(polyak.__file__).parent)
Made = TypeVar("Made")


class Interrupt(BaseException):
    """What no ``except Exception`` catches, like KeyboardInterrupt."""


def interrupted(run: Callable[[], object], at: int) -> bool:
    """Run with an interrupt at the ``at``-th line or call inside polyak; whether there was such a one."""
    passed = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal passed
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event in ("line", "call"):
            passed += 1
            if passed == at:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    assert passed < at, "an interrupt was swallowed"
    return False


def every_line(make: Callable[[], tuple[Callable[[], object], Made]]) -> Iterator[tuple[int, Made]]:
    """For each line of a run, a run of its own with an interrupt there: its number, and what was made for it.

    Args:
        make: gives what to run and what it runs on, both fresh: a second run of the same would take other
            lines, as soon as the first has left something in a cache.
    """
    at = 1
    while True:
        run, made = make()
        if not interrupted(run, at):
            break
        yield at, made
        at += 1
    assert at > 10, "hardly anything ran"
