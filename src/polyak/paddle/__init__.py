"""The same ``EMA`` for PaddlePaddle, dynamic graph. Nothing here imports torch."""

import warnings

from polyak.errors import MissingExtraError

try:
    with warnings.catch_warnings():  # Paddle's, about missing compilers
        warnings.simplefilter("ignore")
        import paddle as _paddle  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    raise MissingExtraError("PaddlePaddle", "paddle") from error

from polyak._core.load_report import LoadReport as LoadReport
from polyak._core.track import Track as Track
from polyak.paddle.batchnorm import update_batchnorm as update_batchnorm
from polyak.paddle.ema import EMA as EMA
from polyak.paddle.exponential import ExponentialMovingAverage as ExponentialMovingAverage
from polyak.paddle.teacher import Teacher as Teacher
