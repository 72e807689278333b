"""Everything polyak raises on purpose.

    PolyakError
    ├── ConfigError      (also ValueError)       an argument is invalid
    ├── PlanError                                the model and the average disagree
    ├── SwapError                                the model holds the wrong weights for this operation
    ├── NonFiniteError   (also ArithmeticError)  a parameter is NaN or infinite where it must not be
    ├── CheckpointError                          a file or state is unreadable, truncated or does not match
    ├── ServerError                              a shared average refuses a push, or does not answer
    └── MissingExtraError (also ImportError)     an optional package is not installed

Each message names the argument or tensor, its value, the rule it breaks and the way out.
"""

from __future__ import annotations


class PolyakError(Exception):
    """Base of every error polyak raises on purpose."""


class ConfigError(PolyakError, ValueError):
    """An argument is invalid."""


class PlanError(PolyakError):
    """The model and the average disagree: a tensor is missing, resized or not averageable."""


class SwapError(PolyakError):
    """The model holds the wrong weights (raw or averaged) for this operation."""


class NonFiniteError(PolyakError, ArithmeticError):
    """A parameter is NaN or infinite where averaging begins, or later under ``on_nonfinite="raise"``."""


class CheckpointError(PolyakError):
    """A file or a state dict is unreadable, truncated or does not match."""


class ServerError(PolyakError):
    """A shared average refuses a push, lacks a version, or does not answer."""


class MissingExtraError(PolyakError, ImportError):
    """An optional package is not installed; the message contains the pip line and the alternative."""

    def __init__(self, package: str, extra: str, instead: str = "") -> None:
        # Also true of an installation from a clone: pip takes the extra of the polyak that is installed.
        pip = f'{package} is not installed. Install it with: pip install "polyak[{extra}]"'
        super().__init__(f"{pip}. {instead}" if instead else pip)
