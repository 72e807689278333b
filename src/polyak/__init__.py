"""Averages of neural-network weights while they train.

    import polyak

    ema = polyak.EMA(model, decay=0.9999)
    ...                                   # forward, backward
    optimizer.step()
    ema.update()
    with ema.average_parameters():
        evaluate(model)

Importing polyak imports neither NumPy nor a framework: each name is imported from its home at first use.
``polyak.EMA`` is ``polyak.torch.EMA``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyak._lazy import lazy_names

if TYPE_CHECKING:
    from polyak._foreign.load import Average as Average
    from polyak._foreign.load import load as load
    from polyak.archive.archive import Archive as Archive
    from polyak.archive.synthesis import synthesizable as synthesizable
    from polyak.archive.synthesis import synthesize as synthesize
    from polyak.errors import CheckpointError as CheckpointError
    from polyak.errors import ConfigError as ConfigError
    from polyak.errors import MissingExtraError as MissingExtraError
    from polyak.errors import NonFiniteError as NonFiniteError
    from polyak.errors import PlanError as PlanError
    from polyak.errors import PolyakError as PolyakError
    from polyak.errors import ServerError as ServerError
    from polyak.errors import SwapError as SwapError
    from polyak.merge.average import average_checkpoints as average_checkpoints
    from polyak.schedules import Adaptive as Adaptive
    from polyak.schedules import Anneal as Anneal
    from polyak.schedules import ByName as ByName
    from polyak.schedules import Capped as Capped
    from polyak.schedules import Constant as Constant
    from polyak.schedules import Cosine as Cosine
    from polyak.schedules import Custom as Custom
    from polyak.schedules import Debiased as Debiased
    from polyak.schedules import Decay as Decay
    from polyak.schedules import HalfLife as HalfLife
    from polyak.schedules import Piecewise as Piecewise
    from polyak.schedules import Power as Power
    from polyak.schedules import Profile as Profile
    from polyak.schedules import Ramp as Ramp
    from polyak.schedules import Recency as Recency
    from polyak.schedules import Scaled as Scaled
    from polyak.schedules import Uniform as Uniform
    from polyak.schedules import Warmup as Warmup
    from polyak.schedules import compose as compose
    from polyak.schedules import scale_decay as scale_decay
    from polyak.schedules import suggest_half_life as suggest_half_life
    from polyak.select.best_checkpoint import BestCheckpoint as BestCheckpoint
    from polyak.torch import EMA as EMA
    from polyak.torch import Teacher as Teacher
    from polyak.torch import update_batchnorm as update_batchnorm

    __version__: str

# Where each name is defined; a room, or a name, is imported when it is first used.
_ROOMS = ("archive", "errors", "losses", "merge", "paddle", "schedules", "select", "server", "torch")
_HOMES = {
    "polyak._foreign.load": ("Average", "load"),
    "polyak.archive.archive": ("Archive",),
    "polyak.archive.synthesis": ("synthesizable", "synthesize"),
    "polyak.errors": (
        "CheckpointError",
        "ConfigError",
        "MissingExtraError",
        "NonFiniteError",
        "PlanError",
        "PolyakError",
        "ServerError",
        "SwapError",
    ),
    "polyak.merge.average": ("average_checkpoints",),
    "polyak.schedules": (
        "Adaptive",
        "Anneal",
        "ByName",
        "Capped",
        "Constant",
        "Cosine",
        "Custom",
        "Debiased",
        "Decay",
        "HalfLife",
        "Piecewise",
        "Power",
        "Profile",
        "Ramp",
        "Recency",
        "Scaled",
        "Uniform",
        "Warmup",
        "compose",
        "scale_decay",
        "suggest_half_life",
    ),
    "polyak.select.best_checkpoint": ("BestCheckpoint",),
    "polyak.torch": ("EMA", "Teacher", "update_batchnorm"),
}
_first_use = lazy_names(__name__, _HOMES)[0]

__all__ = [
    "EMA",
    "Adaptive",
    "Anneal",
    "Archive",
    "Average",
    "BestCheckpoint",
    "ByName",
    "Capped",
    "CheckpointError",
    "ConfigError",
    "Constant",
    "Cosine",
    "Custom",
    "Debiased",
    "Decay",
    "HalfLife",
    "MissingExtraError",
    "NonFiniteError",
    "Piecewise",
    "PlanError",
    "PolyakError",
    "Power",
    "Profile",
    "Ramp",
    "Recency",
    "Scaled",
    "ServerError",
    "SwapError",
    "Teacher",
    "Uniform",
    "Warmup",
    "average_checkpoints",
    "compose",
    "load",
    "scale_decay",
    "suggest_half_life",
    "synthesizable",
    "synthesize",
    "update_batchnorm",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:  # so that polyak.paddle.EMA is there after ``import polyak``
        return import_module(f"polyak.{name}")
    if name == "__version__":
        return import_module("importlib.metadata").version("polyak")
    return _first_use(name)


def __dir__() -> list[str]:
    return __all__
