"""Accelerate: ``ema = average(accelerator, model, optimizer, 0.9999)``, before or after ``prepare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from polyak.errors import MissingExtraError
from polyak.schedules import Decay
from polyak.torch import EMA
from polyak.trainers.common import check_not_sharded
from polyak.trainers.common import numbers as numbers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
else:
    try:
        from accelerate import Accelerator
        from accelerate.optimizer import AcceleratedOptimizer
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise MissingExtraError("accelerate", "accelerate") from error


def average(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    decay: float | Decay | Mapping[str, float | Decay] = 0.9999,
    **options: Any,
) -> EMA:
    """Average a model's weights after each step the optimizer takes; saved and loaded with the accelerator.

    Micro-batches under ``accelerator.accumulate`` and steps that its scaler skips do not count.
    ``load_state`` continues bit for bit; what ``save_state`` writes for the model are the raw weights.

    Args:
        accelerator: its ``save_state`` and ``load_state`` include the average from now on.
        model: prepared or not.
        optimizer: prepared or not.
        decay: β, a schedule, or several by name.
        options: every other argument of ``polyak.EMA``.

    Returns:
        The average: evaluate inside ``with ema.average_parameters():``.

    Raises:
        ConfigError: an argument is outside its rule, or the accelerator shards the model.
        PlanError: the model itself is sharded.
    """
    check_not_sharded(accelerator.distributed_type.value)
    ema = EMA(model, decay, **options)
    if isinstance(optimizer, AcceleratedOptimizer):  # has no hooks, and is called for micro-batches too
        optimizer = cast(Optimizer, optimizer.optimizer)
    ema.attach(optimizer)
    accelerator.register_for_checkpointing(ema)
    return ema
