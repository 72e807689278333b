"""The core, for PyTorch: one ``EMA`` per model, kept beside the optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyak._lazy import lazy_names
from polyak.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    instead = "Layers of PaddlePaddle go to polyak.paddle.EMA."
    raise MissingExtraError("PyTorch", "torch", instead) from error

from polyak._core.track import Track as Track
from polyak.torch.ema import EMA as EMA

if TYPE_CHECKING:
    from polyak._core.load_report import LoadReport as LoadReport
    from polyak.torch.batchnorm import update_batchnorm as update_batchnorm
    from polyak.torch.teacher import Teacher as Teacher

# Imported when first used, since most runs use none of them.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "polyak._core.load_report": ("LoadReport",),
        "polyak.torch.batchnorm": ("update_batchnorm",),
        "polyak.torch.teacher": ("Teacher",),
    },
)
