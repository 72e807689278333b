"""The same ``EMA`` for PaddlePaddle, dynamic graph. Nothing here imports torch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from polyak._lazy import lazy_names
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
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "polyak._core.load_report": ("LoadReport",),
        "polyak.paddle.batchnorm": ("update_batchnorm",),
        "polyak.paddle.exponential": ("ExponentialMovingAverage",),
        "polyak.paddle.teacher": ("Teacher",),
    },
)
