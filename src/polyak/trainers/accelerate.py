"""Accelerate: ``ema = weight_averaging(accelerator, model, optimizer)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn
from torch.optim import Optimizer

from polyak._core.track import DEFAULT_DECAY, Decays
from polyak.errors import MissingExtraError
from polyak.torch import EMA
from polyak.trainers._averaging import numbers as numbers
from polyak.trainers._common import EMAOptions, check_not_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from typing_extensions import Unpack
else:
    try:
        from accelerate import Accelerator
        from accelerate.optimizer import AcceleratedOptimizer
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise MissingExtraError("accelerate", "accelerate") from error


def weight_averaging(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    decay: Decays = DEFAULT_DECAY,
    **options: Unpack[EMAOptions],
) -> EMA:
    """Average a model's weights after each optimizer step; the accelerator saves and loads the average.

    Micro-batches under ``accelerator.accumulate`` and steps that its scaler skips do not count.
    ``load_state`` continues bit for bit; the model's weights in ``save_state`` are the raw ones.

    Args:
        accelerator: its ``save_state`` and ``load_state`` will include the average.
        model: prepared or not.
        optimizer: prepared or not.
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        options: every other argument of ``polyak.EMA``.

    Returns:
        The average: evaluate inside ``with ema.average_parameters():``.

    Raises:
        ConfigError: an argument is invalid, or the accelerator shards the model.
        PlanError: the model itself is sharded.
    """
    check_not_sharded(accelerator.distributed_type.value)
    ema = EMA(model, decay, **options)
    if isinstance(optimizer, AcceleratedOptimizer):  # has no hooks, and is called for micro-batches too
        optimizer = cast(Optimizer, optimizer.optimizer)
    ema.attach(optimizer)
    accelerator.register_for_checkpointing(ema)
    return ema
