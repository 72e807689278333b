"""Excluding updates from ``torch.compile``.

Engines read addresses from tables, so a kernel's writes are invisible to Dynamo's analysis (it removed whole
launches as dead code), and counters that change at each step would recompile at each step. So an update in a
compiled training step runs eagerly, between two compiled graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, run eagerly even if Dynamo traces its caller.

    ``torch.compiler.disable`` alone would do, but it imports Dynamo when applied, which takes a second, and
    costs some microseconds per call. Checking first costs eager calls 0.1 µs.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():  # a constant to Dynamo, which breaks the graph here
            eager = cast(Callable[P, R], torch.compiler.disable(function))
            return eager(*args, **kwargs)
        return function(*args, **kwargs)

    return run


def untraced_methods(*names: str) -> Callable[[type[C]], type[C]]:
    """A class whose methods of these names, inherited ones too, are ``untraced``."""

    def decorate(cls: type[C]) -> type[C]:
        for name in names:
            setattr(cls, name, untraced(getattr(cls, name)))
        return cls

    return decorate
