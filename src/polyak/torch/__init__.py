"""The core, for PyTorch: one ``EMA`` per model, kept beside the optimizer."""

from polyak.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    raise MissingExtraError("PyTorch", "torch") from error

from polyak.torch.buffers import update_batchnorm as update_batchnorm
from polyak.torch.ema import EMA as EMA
from polyak.torch.state import LoadReport as LoadReport
from polyak.torch.track import Track as Track
