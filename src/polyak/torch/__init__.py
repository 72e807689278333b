"""The core, for PyTorch: one ``EMA`` per model, kept beside the optimizer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_HOME = {
    "LoadReport": "polyak._core.load_report",
    "Teacher": "polyak.torch.teacher",
    "update_batchnorm": "polyak.torch.batchnorm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'polyak.torch' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
