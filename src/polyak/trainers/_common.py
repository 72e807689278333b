"""What the trainers share: the arguments, the average during training, what is logged and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, ParamSpec, TypeAlias, TypedDict, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from polyak._core.nonfinite import NonFinitePolicy
from polyak._core.save import raw_header, track_header
from polyak._core.tensor_map import Buffers, Patterns
from polyak._core.track import named_decays
from polyak._files.header import Header
from polyak._files.source import Where
from polyak._foreign.note import write_note
from polyak.errors import CheckpointError, ConfigError, PlanError
from polyak.schedules import Decay
from polyak.torch import EMA
from polyak.torch._engines.select import EngineName
from polyak.torch.optimizer_hook import Attachment
from polyak.torch.store import DType

P = ParamSpec("P")
R = TypeVar("R")
Decays: TypeAlias = float | Decay | Mapping[str, float | Decay]
_LOGGED = ("decay", "mean_age", "distance", "skipped")


class EMAOptions(TypedDict, total=False):
    """The arguments of ``polyak.EMA`` besides the model and the decay."""

    include: Patterns
    exclude: Patterns
    buffers: Buffers
    dtype: DType
    device: str | torch.device | None
    every: int
    start: int
    on_nonfinite: NonFinitePolicy
    seed: int
    compensated: bool
    engine: EngineName
    overlap: bool


class Averaging:
    """The part of every ``WeightAveraging`` that does not depend on the trainer.

    Args:
        decay: β, a schedule, or several by name.
        evaluate: the track to evaluate on; the first if None. "raw" for the raw weights.
        options: of ``polyak.EMA``.

    Raises:
        ConfigError: ``decay`` or ``evaluate`` is outside its rule.
        TypeError: an option is unknown.
    """

    _begins: ClassVar[str]  # when there is an average

    def __init__(self, decay: Decays, evaluate: str | None, options: EMAOptions) -> None:
        if unknown := sorted(options.keys() - EMAOptions.__annotations__.keys()):
            raise TypeError(f"WeightAveraging has no argument {unknown[0]!r}.")
        tracks = named_decays(decay)
        if evaluate is not None and evaluate != "raw" and evaluate not in tracks:
            names = ", ".join(map(repr, tracks))
            raise ConfigError(f"evaluate={evaluate!r}: must be {names}, 'raw' or None.")
        self._decay, self._evaluate, self._options = decay, evaluate, options
        self._ema: EMA | None = None
        self._attachment: Attachment | None = None

    @property
    def ema(self) -> EMA:
        """The average.

        Raises:
            PlanError: it does not exist yet, because training has not begun.
        """
        if self._ema is None:
            raise PlanError(f"there is no average before {self._begins}.")
        return self._ema

    def _make(self, model: nn.Module) -> EMA:
        self._ema = EMA(model, self._decay, **self._options)
        return self._ema

    def _follow(self, optimizer: Optimizer) -> None:
        self._unfollow()
        self._attachment = self.ema.attach(optimizer)

    def _unfollow(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def _evaluating(self) -> AbstractContextManager[object]:
        """The model holds the track to evaluate in this block."""
        return nullcontext() if self._evaluate == "raw" else self.ema.average_parameters(self._evaluate)

    def _saved_track(self, track: str | None) -> str | None:
        """The track to save: the evaluated one if none is named."""
        return track or (None if self._evaluate == "raw" else self._evaluate)


def numbers(ema: EMA, group: str = "ema") -> dict[str, float]:
    """``ema/decay``, ``ema/mean_age``, ``ema/distance``, ``ema/skipped``; ``ema/short/decay`` for several."""
    return {
        f"{group}/{key}": float(value)
        for key, value in ema.metrics().items()
        if key.rpartition("/")[2] in _LOGGED
    }


def say_beside(where: Where, ema: EMA, track: str | None) -> None:
    """Write a note beside a checkpoint that a trainer wrote: whose weights these are.

    Args:
        where: the file, or the folder that holds it or its shards.
        ema: the average.
        track: whose weights it holds; the first track's if None, "raw" for the model's own.
    """
    write_note(where, header_of(ema, track))


def header_of(ema: EMA, track: str | None) -> Header:
    """The header of a file with a track's weights; None is the first track, "raw" the model's own weights."""
    if track == "raw":
        return raw_header(ema.step, ema.run)
    return track_header(ema.tracks[track or next(iter(ema.tracks))], ema.step, ema.run)


def check_not_sharded(distributed_type: str) -> None:
    """Refuse models that Accelerate shards later, or in a way that no parameter shows.

    Raises:
        ConfigError: it is FSDP, DeepSpeed or Megatron.
    """
    if distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError(
            f"accelerator.distributed_type={distributed_type} shards the model: the average needs it whole "
            "in each process. Use DDP or a single device."
        )


def closing(live: ExitStack, run: Callable[P, R]) -> Callable[P, R]:
    """``run``, with ``live`` closed when it returns or raises."""

    def closed(*args: P.args, **kwargs: P.kwargs) -> R:
        with live:
            return run(*args, **kwargs)

    return closed


def arguments_in(state: Mapping[str, Any]) -> tuple[dict[str, Decay], EMAOptions]:
    """The decays by track and the options of ``polyak.EMA`` that a state holds.

    Raises:
        CheckpointError: the state is malformed.
    """
    try:
        decays = {name: Decay.from_config(track["decay"]) for name, track in state["tracks"].items()}
        return decays, {"every": state["every"], "start": state["start"], "seed": state["seed"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the state is not one of polyak.EMA: {error!r}.") from error
