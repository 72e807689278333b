"""The common base of PyTorch trainers: the options of ``polyak.EMA``, and the average during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from polyak._core.clock import Start, in_steps
from polyak._core.initial_weight import warn_if_older_than_the_run
from polyak._core.nonfinite import NonFinitePolicy
from polyak._core.optimizer_hook import Attachment
from polyak._core.tensor_map import Buffers, Patterns
from polyak.errors import ConfigError
from polyak.torch import EMA
from polyak.torch._engines.select import EngineName
from polyak.torch.store import DType
from polyak.trainers._averaging import AnyAveraging, Decays, Folder
from polyak.trainers._evaluations import Evaluate

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class EMAOptions(TypedDict, total=False):
    """The arguments of ``polyak.EMA`` besides the model and the decay."""

    include: Patterns
    exclude: Patterns
    buffers: Buffers
    dtype: DType
    device: str | torch.device | None
    shard: dist.ProcessGroup | DeviceMesh | None
    every: int
    start: Start
    on_nonfinite: NonFinitePolicy
    seed: int
    compensated: bool
    engine: EngineName
    overlap: bool


class Averaging(AnyAveraging[EMA]):
    """The part of every ``WeightAveraging`` for PyTorch that does not depend on the trainer.

    Args:
        decay: β, a schedule, several by name, or an ``Adaptive``.
        evaluate: the track to evaluate on; the first if None. "raw" for the raw weights.
        options: of ``polyak.EMA``.
        report: write ``report.html`` when training ends: True for the trainer's own folder, or a folder.

    Raises:
        ConfigError: ``decay`` or ``evaluate`` is invalid.
        TypeError: an option is unknown.
    """

    _saves_parts: ClassVar[bool] = False  # whether every process takes part in the trainer's checkpoints

    def __init__(
        self, decay: Decays, evaluate: Evaluate, options: EMAOptions, report: bool | Folder = None
    ) -> None:
        super().__init__(decay, evaluate, options, EMAOptions.__annotations__, report)
        self._options = options
        self._attachment: Attachment | None = None

    def _make(self, model: nn.Module, run: float | None = None, began: int | None = None) -> EMA:
        """Make the average of a model.

        Args:
            model: to be trained.
            run: training steps of the run, if known.
            began: the start of a state that will be loaded, which a start given as a share keeps.

        Raises:
            ConfigError: the average is sharded, and the trainer's checkpoints would hold one part.
        """
        options = self._options
        if isinstance(start := options.get("start", 0), str):
            options = options | {"start": in_steps(start, run) if began is None else began}
        ema = EMA(model, self._decay, **options)
        if is_sharded(ema) and not self._saves_parts:
            raise ConfigError(
                "model: each process holds a part of its average, and this trainer's checkpoints would hold "
                "that of one. Use polyak.EMA(model) with ema.attach(optimizer), and ema.save on every rank."
            )
        self._ema = ema
        if run is not None and began is None:
            warn_if_older_than_the_run(self._ema.tracks, run - self._ema.start)
        return self._ema

    def _follow(self, optimizer: Optimizer) -> None:
        self._unfollow()
        self._attachment = self.ema.attach(optimizer)

    def _unfollow(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None


def is_sharded(ema: EMA) -> bool:
    """Whether each process holds a part of the average, so that every process takes part in a save."""
    entries = ema._averages.plan.entries.values()  # pyright: ignore[reportPrivateUsage]
    return any(entry.piece is not None for entry in entries)


def check_sharding(accelerator: Any) -> None:
    """Refuse the ways of Accelerate to shard a model under which no average can follow it.

    Raises:
        ConfigError: it is FSDP's first version, DeepSpeed or Megatron.
    """
    kind: str = accelerator.distributed_type.value
    why = {
        "FSDP": "is FSDP's first version, whose shards are ranges of one flat tensor",
        "DEEPSPEED": "takes the optimizer's steps in its own engine, and its ZeRO-3 keeps values elsewhere",
        "MEGATRON_LM": "has parameters and an optimizer of its own",
    }
    if kind == "FSDP" and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) == 2:  # since 1.6
        return
    if kind in why:
        raise ConfigError(
            f"accelerator.distributed_type={kind} {why[kind]}. Use FSDP with fsdp_version=2, which is "
            "torch.distributed.fsdp.fully_shard, or DDP."
        )
