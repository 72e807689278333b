"""The common base of PaddlePaddle trainers: the options of ``polyak.paddle.EMA``."""

from __future__ import annotations

from typing import TypedDict

# Before Paddle itself, which it imports without Paddle's warnings; if Paddle is missing, its error says so.
from polyak.paddle import EMA

# isort: split

from paddle import nn

from polyak._core.nonfinite import NonFinitePolicy
from polyak._core.tensor_map import Buffers, Patterns
from polyak._core.track import Decays
from polyak.paddle.store import DType, EngineName
from polyak.trainers._averaging import AnyAveraging, Folder
from polyak.trainers._evaluations import Evaluate


class EMAOptions(TypedDict, total=False):
    """The arguments of ``polyak.paddle.EMA`` besides the layer and the decay."""

    include: Patterns
    exclude: Patterns
    buffers: Buffers
    dtype: DType
    every: int
    start: int
    on_nonfinite: NonFinitePolicy
    seed: int
    compensated: bool
    engine: EngineName


class Averaging(AnyAveraging[EMA]):
    """The part of every ``WeightAveraging`` for Paddle that does not depend on the trainer.

    Args:
        decay: β, a schedule, several by name, or an ``Adaptive``.
        evaluate: see ``evaluations``.
        options: of ``polyak.paddle.EMA``.
        report: the folder to write ``report.html`` into when training ends.

    Raises:
        ConfigError: ``decay`` or ``evaluate`` is invalid.
        TypeError: an option is unknown.
    """

    def __init__(self, decay: Decays, evaluate: Evaluate, options: EMAOptions, report: Folder = None) -> None:
        super().__init__(decay, evaluate, options, EMAOptions.__annotations__, report)
        self._options = options

    def _make(self, layer: nn.Layer) -> EMA:
        self._ema = EMA(layer, self._decay, **self._options)
        return self._ema
