"""The same ``EMA`` for PaddlePaddle, dynamic graph. Nothing here imports torch."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyak.errors import MissingExtraError

try:
    with warnings.catch_warnings():  # Paddle's, about missing compilers
        warnings.simplefilter("ignore")
        import paddle as _paddle  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    raise MissingExtraError("PaddlePaddle", "paddle") from error

from polyak._core.track import Track as Track
from polyak.paddle.ema import EMA as EMA

if TYPE_CHECKING:
    from polyak._core.load_report import LoadReport as LoadReport
    from polyak.paddle.batchnorm import update_batchnorm as update_batchnorm
    from polyak.paddle.exponential import ExponentialMovingAverage as ExponentialMovingAverage
    from polyak.paddle.teacher import Teacher as Teacher

# Imported when first used, since most runs use none of them.
_HOME = {
    "ExponentialMovingAverage": "polyak.paddle.exponential",
    "LoadReport": "polyak._core.load_report",
    "Teacher": "polyak.paddle.teacher",
    "update_batchnorm": "polyak.paddle.batchnorm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polyak.paddle' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
