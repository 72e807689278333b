"""Accelerate: ``ema = weight_averaging(accelerator, model, optimizer)``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from torch import nn
from torch.optim import Optimizer

from polyak._core.track import DEFAULT_DECAY, Decays
from polyak.errors import ConfigError, MissingExtraError
from polyak.report.training import report_training
from polyak.torch import EMA
from polyak.torch._sharding.kinds import fsdp_modules
from polyak.trainers._averaging import Folder, for_report
from polyak.trainers._averaging import numbers as numbers
from polyak.trainers._common import EMAOptions, check_sharding, is_sharded

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
    *,
    report: bool | Folder = False,
    **options: Unpack[EMAOptions],
) -> EMA:
    """Average a model's weights after each optimizer step; the accelerator saves and loads the average.

    Micro-batches under ``accelerator.accumulate`` and steps that its scaler skips do not count.
    ``load_state`` continues bit for bit; the model's weights in ``save_state`` are the raw ones. With
    ``fsdp_version=2``, and under ``shard=``, each process keeps its part, and ``save_state`` writes the whole
    average to ``polyak.safetensors`` in its folder.

    Args:
        accelerator: its ``save_state`` and ``load_state`` will include the average.
        model: prepared or not; under ``fsdp_version=2`` prepared.
        optimizer: prepared or not.
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        report: write ``report.html`` in ``accelerator.end_training()``: True into
            ``accelerator.project_dir``, or a folder; with the curves of the logs there.
        options: every other argument of ``polyak.EMA``.

    Returns:
        The average: evaluate inside ``with ema.average_parameters():``.

    Raises:
        ConfigError: an argument is invalid, the accelerator shards the model by something else than
            ``fully_shard``, or has not sharded it yet, or ``report`` is True and it has no folder.
        PlanError: the model itself is sharded by something else.
    """
    check_sharding(accelerator)
    own = cast("str | None", accelerator.project_dir)  # declared as a str
    if report is True and own is None:
        raise ConfigError(
            'report=True: this accelerator has no project_dir. Give it Accelerator(project_dir="runs/a"), or '
            'name the folder with the logs, report="runs/a".'
        )
    if accelerator.distributed_type.value == "FSDP" and not fsdp_modules(model.modules()):
        raise ConfigError(
            "model: fsdp_version=2 shards it in accelerator.prepare, and gives it other parameters there. "
            "Prepare model and optimizer first, then call weight_averaging."
        )
    ema = EMA(model, decay, **options)
    if isinstance(optimizer, AcceleratedOptimizer):  # has no hooks, and is called for micro-batches too
        optimizer = cast(Optimizer, optimizer.optimizer)
    ema.attach(optimizer)
    if is_sharded(ema):
        _save_in_parts(accelerator, ema)
    else:
        accelerator.register_for_checkpointing(ema)
    if folder := own if report is True else report:
        _report_at_end(accelerator, ema, Path(folder))
    return ema


# The averages that an accelerator reports at its end, by folder.
_REPORTED: WeakKeyDictionary[Accelerator, dict[Path, list[EMA]]] = WeakKeyDictionary()


def _report_at_end(accelerator: Accelerator, ema: EMA, folder: Path) -> None:
    """Make ``end_training`` write the report after the trackers, which close their files there."""
    if waiting := _REPORTED.get(accelerator):
        waiting.setdefault(folder, []).append(ema)
        return
    _REPORTED[accelerator] = {folder: [ema]}
    end = accelerator.end_training

    @wraps(end)
    def end_training() -> None:
        accelerator.end_training = end
        reports = _REPORTED.pop(accelerator)
        found = {place: for_report(_numbered(emas)) for place, emas in reports.items()}  # while in a group
        end()
        if accelerator.is_main_process:
            for place, (averages, facts) in found.items():
                report_training(place, averages, facts)

    accelerator.end_training = end_training


def _numbered(emas: Sequence[EMA]) -> dict[str, EMA]:
    """Averages by the numbers of their files: none for the first."""
    return {str(place) if place > 1 else "": ema for place, ema in enumerate(emas, 1)}


_NAMES: WeakKeyDictionary[Accelerator, int] = WeakKeyDictionary()  # files that an accelerator writes


def _save_in_parts(accelerator: Accelerator, ema: EMA) -> None:
    """Save and load with every process: what Accelerate checkpoints, its first process alone would write."""
    count = _NAMES[accelerator] = _NAMES.get(accelerator, 0) + 1
    file = "polyak.safetensors" if count == 1 else f"polyak-{count}.safetensors"

    def save(models: object, weights: object, folder: str) -> None:
        ema.save(Path(folder, file), resumable=True)

    def load(models: object, folder: str) -> None:
        ema.load(Path(folder, file))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
