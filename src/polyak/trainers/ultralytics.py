"""Ultralytics: ``average = use(model, 0.9999)``, before ``model.train(…)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from polyak._core.track import named_decays
from polyak._files.write import atomic
from polyak._foreign.note import write_note
from polyak._foreign.open_any import open_weights
from polyak._foreign.recognize import recognise
from polyak.errors import CheckpointError, ConfigError, MissingExtraError, PlanError
from polyak.schedules import Decay
from polyak.torch import EMA
from polyak.torch.optimizer_hook import Attachment
from polyak.trainers.common import check_evaluate, numbers

try:
    from ultralytics.utils.torch_utils import unwrap_model
except ModuleNotFoundError as error:
    if error.name != "ultralytics":
        raise
    raise MissingExtraError("Ultralytics", "ultralytics") from error


class WeightAverage:
    """The average in a training that ``use`` was called for.

    Args:
        decay: β, a schedule, or several by name.
        evaluate: the track that stands where Ultralytics' own average would; the first if None.
        options: every other argument of ``polyak.EMA``.
    """

    def __init__(
        self,
        decay: float | Decay | Mapping[str, float | Decay],
        evaluate: str | None,
        options: Mapping[str, Any],
    ) -> None:
        check_evaluate(evaluate, named_decays(decay))
        if evaluate == "raw":
            raise ConfigError("evaluate='raw': best.pt and last.pt hold an average; name a track.")
        self._decay, self._evaluate, self._options = decay, evaluate, options
        self._ema: EMA | None = None
        self._attachment: Attachment | None = None
        self._followed: Optimizer | None = None

    @property
    def ema(self) -> EMA:
        """The average.

        Raises:
            PlanError: training has not begun, so there is nothing to average yet.
        """
        if self._ema is None:
            raise PlanError("there is no average before model.train() begins.")
        return self._ema

    def _begin(self, trainer: Any) -> None:
        net: nn.Module = unwrap_model(trainer.model)
        self._ema = EMA(net, self._decay, **self._options)
        if trainer.resume:
            self._restore(trainer, Path(trainer.args.resume), trainer.start_epoch - 1)
        self._follow(trainer)

    def _epoch(self, trainer: Any) -> None:
        if trainer.nan_recovery_attempts:  # it went back to last.pt, an average in half precision
            self._restore(trainer, trainer.last, trainer.epoch - 1)
        self._follow(trainer)

    def _follow(self, trainer: Any) -> None:
        # Its copy of the model stays, and is given the average when it is looked at.
        trainer.ema.enabled = False
        if self._followed is not trainer.optimizer:  # made anew when memory ran out in the first epoch
            self._let_go(trainer)
            self._followed, self._attachment = trainer.optimizer, self.ema.attach(trainer.optimizer)

    def _show(self, trainer: Any) -> None:
        self.ema.copy_to(trainer.ema.ema, self._evaluate)
        trainer.ema.updates = self.ema.step
        trainer.lr |= numbers(self.ema)  # results.csv and all loggers take down what is in there

    def _save(self, trainer: Any) -> None:
        kept = {
            "epoch": trainer.epoch,
            "raw": self.ema.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
        }
        written = [trainer.last]
        if trainer.best_fitness == trainer.fitness:
            written.append(trainer.best)
        if trainer.save_period > 0 and trainer.epoch % trainer.save_period == 0:
            written.append(trainer.wdir / f"epoch{trainer.epoch}.pt")
        for path in written:
            with atomic(_beside(path)) as temporary:
                torch.save(kept, temporary)
            self._note(path)

    def _end(self, trainer: Any) -> None:
        """Stripped of the optimizer, both files have other bytes than when they were noted."""
        for path in (trainer.last, trainer.best):
            if path.exists() and _beside(path).exists():
                self._note(path)

    def _note(self, path: Path) -> None:
        """Say beside a file of Ultralytics' what the file of polyak's beside it says of the average."""
        track = self._evaluate or next(iter(self.ema.tracks))
        with open_weights(_beside(path)) as kept:
            headers = {part.name: part.header for part in recognise(kept).parts}
        if (header := headers.get(track)) is not None:
            write_note(path, header)

    def _restore(self, trainer: Any, weights: Path, epoch: int) -> None:
        path = _beside(weights)
        if not path.exists():
            raise CheckpointError(f"{path} is missing: {weights} was written without use().")
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["epoch"] != epoch:
            raise CheckpointError(
                f"{path} is of epoch {kept['epoch']}, {weights} of epoch {epoch}: the run was killed between "
                "the two. Begin again."
            )
        self.ema.model.load_state_dict(kept["raw"])
        trainer.optimizer.load_state_dict(kept["optimizer"])
        self.ema.load_state_dict(kept["ema"])

    def _let_go(self, trainer: Any) -> None:
        if self._attachment is not None:
            self._attachment.remove()
        self._followed = self._attachment = None


def use(
    model: Any,
    decay: float | Decay | Mapping[str, float | Decay] = 0.9999,
    *,
    evaluate: str | None = None,
    **options: Any,
) -> WeightAverage:
    """Average the weights after each optimizer step; validate and save it in place of Ultralytics' average.

    ``best.pt`` and ``last.pt`` hold this average, in half precision, and a note beside each says so.
    ``best.polyak.pt`` and ``last.polyak.pt`` keep the raw weights, the optimizer's state in full precision
    and the average with all that resuming takes; ``model.train(resume=True)`` continues from them. The order
    of the images and their augmentation begin anew then, as they always do in Ultralytics.

    ``ema/decay``, ``ema/mean_age``, ``ema/distance`` and ``ema/skipped`` stand in ``results.csv`` and
    wherever Ultralytics logs its learning rates.

    Args:
        model: ``YOLO(…)``.
        decay: β, a schedule, or several by name.
        evaluate: the track that is validated and saved; the first if None.
        options: every other argument of ``polyak.EMA``.

    Returns:
        The average; its ``ema`` is there once training begins.

    Raises:
        ConfigError: an argument is outside its rule; when training begins, on several devices.
    """
    average = WeightAverage(decay, evaluate, options)
    for event, act in {
        "on_pretrain_routine_end": average._begin,  # pyright: ignore[reportPrivateUsage]
        "on_train_epoch_start": average._epoch,  # pyright: ignore[reportPrivateUsage]
        "on_train_epoch_end": average._show,  # pyright: ignore[reportPrivateUsage]
        "on_train_end": average._end,  # pyright: ignore[reportPrivateUsage]
        "on_model_save": average._save,  # pyright: ignore[reportPrivateUsage]
        "teardown": average._let_go,  # pyright: ignore[reportPrivateUsage]
    }.items():
        model.add_callback(event, act)
    model.train = _in_one_process(model, model.train)
    return average


def _in_one_process(model: Any, train: Callable[..., Any]) -> Callable[..., Any]:
    """``model.train`` that refuses several devices: their processes are started without these callbacks."""

    def trained(trainer: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        make = trainer or model.task_map[model.task]["trainer"]

        def made(**given: Any) -> Any:
            one = make(**given)
            if one.world_size > 1:
                raise ConfigError(
                    f"device={one.args.device!r}: use() averages in one process; name one device."
                )
            return one

        return train(trainer=made, **kwargs)

    return trained


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.polyak.pt")
