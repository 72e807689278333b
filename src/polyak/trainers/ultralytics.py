"""Ultralytics: ``WeightAveraging().attach(model)``, before ``model.train(…)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from polyak._core.track import DEFAULT_DECAY, Decays
from polyak._files.write import atomic
from polyak._foreign.open_any import open_weights
from polyak._foreign.own import write_note
from polyak._foreign.recognize import recognise
from polyak.errors import CheckpointError, ConfigError, MissingExtraError
from polyak.torch.random_numbers import same_random_numbers
from polyak.trainers._averaging import header_of, numbers
from polyak.trainers._common import Averaging, EMAOptions
from polyak.trainers._evaluations import Evaluate

if TYPE_CHECKING:
    from typing_extensions import Unpack

try:
    from ultralytics.utils.torch_utils import unwrap_model
except ModuleNotFoundError as error:
    if error.name != "ultralytics":
        raise
    raise MissingExtraError("Ultralytics", "ultralytics") from error


class WeightAveraging(Averaging):
    """Average the weights after each optimizer step; validate and save it in place of Ultralytics' average.

    ``best.pt`` and ``last.pt`` hold this average, in half precision, with a note beside each.
    ``best.polyak.pt`` and ``last.polyak.pt`` keep the raw weights, the optimizer's state in full precision
    and the complete average; ``model.train(resume=True)`` continues from them. The order of the images and
    their augmentation restart then, as they always do in Ultralytics.

    ``ema/decay``, ``ema/mean_age``, ``ema/initial_weight``, ``ema/distance`` and ``ema/skipped`` are in
    ``results.csv`` and wherever Ultralytics logs its learning rates.

    Args:
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        evaluate: the track that is validated and saved; the first if None. "both" and lists validate each:
            metrics of all but the first begin with ``raw/`` or ``ema=long/``, and ``best-raw.pt`` or
            ``best-long.pt`` is the best of that kind.
        report: write ``report.html`` at the end: in ``trainer.save_dir``, with the curves of ``results.csv``.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is invalid; when training begins, on several devices.
    """

    _begins = "model.train() begins"
    _has_folder = True

    def __init__(
        self,
        decay: Decays = DEFAULT_DECAY,
        *,
        evaluate: Evaluate = None,
        report: bool = False,
        **options: Unpack[EMAOptions],
    ) -> None:
        super().__init__(decay, evaluate, options, report)
        if self._plain == "raw":
            raise ConfigError(
                f"evaluate={evaluate!r}: best.pt and last.pt hold an average; name a track first."
            )
        self._followed: Optimizer | None = None
        self._shown = ""  # the track in the model that Ultralytics validates and saves
        self._fitness: dict[str, float] = {}  # of the weights validated beside, now
        self._best: dict[str, float] = {}  # and of the run

    def attach(self, model: Any) -> WeightAveraging:
        """Add the callbacks to a model of Ultralytics.

        Args:
            model: ``YOLO(…)``, before ``model.train(…)``.

        Returns:
            This object.
        """
        for event, act in {
            "on_pretrain_routine_end": self._begin,
            "on_train_epoch_start": self._epoch,
            "on_train_epoch_end": self._show,
            "on_train_end": self._end,
            "on_model_save": self._save,
            "teardown": self._release_all,
        }.items():
            model.add_callback(event, act)
        model.train = _in_one_process(model, model.train)
        return self

    def _begin(self, trainer: Any) -> None:
        net: nn.Module = unwrap_model(trainer.model)
        batches = math.ceil(len(trainer.train_loader.dataset) / max(trainer.batch_size, trainer.args.nbs))
        self._make(net, trainer.epochs * batches)
        self._fitness, self._best = {}, {}
        if trainer.resume:
            self._restore(trainer, Path(trainer.args.resume), trainer.start_epoch - 1)
        self._follow_optimizer(trainer)
        trainer.validate = self._validating_each(trainer, trainer.validate)

    def _epoch(self, trainer: Any) -> None:
        if trainer.nan_recovery_attempts:  # it went back to last.pt, an average in half precision
            self._restore(trainer, trainer.last, trainer.epoch - 1)
        self._follow_optimizer(trainer)

    def _follow_optimizer(self, trainer: Any) -> None:
        # Its copy of the model stays, and is given the average when it is looked at.
        trainer.ema.enabled = False
        if self._followed is not trainer.optimizer:  # replaced when memory ran out in the first epoch
            self._follow(trainer.optimizer)
            self._followed = trainer.optimizer

    def _show(self, trainer: Any) -> None:
        self._put_plain(trainer)
        trainer.ema.updates = self.ema.step
        trainer.lr |= numbers(self.ema)  # results.csv and all loggers write what is in it

    def _put_plain(self, trainer: Any) -> None:
        self._shown = self._track_of(self._plain)
        self._put(self._shown, trainer.ema.ema)

    def _put(self, weights: str, model: nn.Module) -> None:
        if weights == "raw":
            model.load_state_dict(self.ema.model.state_dict())
        else:
            self.ema.copy_to(model, self._track_of(weights))

    def _validating_each(self, trainer: Any, validate: Callable[[], Any]) -> Callable[[], Any]:
        def each() -> Any:
            asides: dict[str, float] = {}
            for weights in self._others:
                self._put(weights, trainer.ema.ema)
                with same_random_numbers():
                    metrics = trainer.validator(trainer)
                self._fitness[weights] = float(metrics.pop("fitness"))
                asides |= self._prefixed(weights, metrics)
            self._put_plain(trainer)
            metrics, fitness = validate()
            return {**metrics, **asides}, fitness

        return each

    def _save(self, trainer: Any) -> None:
        for weights, fitness in self._fitness.items():
            if fitness > self._best.get(weights, -math.inf):
                self._best[weights] = fitness
                self._save_best(trainer, weights)
        kept = {
            "epoch": trainer.epoch,
            "raw": self.ema.model.state_dict(),
            "ema": self.ema.state_dict(),
            "track": self._shown,
            "optimizer": _plain_numbers(trainer.optimizer.state_dict()),
            "best": self._best,
        }
        written = [trainer.last]
        if trainer.best_fitness == trainer.fitness:
            written.append(trainer.best)
        if trainer.save_period > 0 and trainer.epoch % trainer.save_period == 0:
            written.append(trainer.wdir / f"epoch{trainer.epoch}.pt")
        header = header_of(self.ema, self._shown)
        for path in written:
            with atomic(_beside(path)) as temporary:
                if path == trainer.last:
                    torch.save(kept, temporary)
                else:
                    copyfile(_beside(trainer.last), temporary)
            write_note(path, header)

    def _save_best(self, trainer: Any, weights: str) -> None:
        """Write weights that ``YOLO(…)`` opens, as it writes its own."""
        model: nn.Module = deepcopy(trainer.ema.ema)
        path: Path = trainer.wdir / f"best-{weights}.pt"
        self._put(weights, model)
        kept: dict[str, Any] = {"ema": model.half(), "train_args": vars(trainer.args), "epoch": trainer.epoch}
        with atomic(path) as temporary:
            torch.save(kept, temporary)
        write_note(path, header_of(self.ema, self._track_of(weights)))

    def _end(self, trainer: Any) -> None:
        """Both files lose their optimizer at the end, so their notes no longer match their bytes."""
        for path in (trainer.last, trainer.best):
            if path.exists() and _beside(path).exists():
                self._note(path)
        self._report(Path(trainer.save_dir))

    def _note(self, path: Path) -> None:
        """Write a note beside a file of Ultralytics: the header of the average in polyak's file beside it."""
        with open_weights(_beside(path)) as weights:
            headers = {part.name: part.header for part in recognise(weights).parts}
        kept = torch.load(_beside(path), map_location="cpu", weights_only=True, mmap=True)
        if (header := headers.get(kept.get("track", self._plain))) is not None:
            write_note(path, header)

    def _restore(self, trainer: Any, weights: Path, epoch: int) -> None:
        path = _beside(weights)
        if not path.exists():
            raise CheckpointError(f"{path} is missing: {weights} was written without WeightAveraging.")
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["epoch"] != epoch:
            raise CheckpointError(
                f"{path} is of epoch {kept['epoch']}, {weights} of epoch {epoch}: the run was killed between "
                "the two. Start a new run."
            )
        self.ema.model.load_state_dict(kept["raw"])
        trainer.optimizer.load_state_dict(kept["optimizer"])
        self.ema.load_state_dict(kept["ema"])
        self._best = kept.get("best", {})

    def _release_all(self, trainer: Any) -> None:
        self._unfollow()
        self._followed = None


def _plain_numbers(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state without ``np.float64``, a float too, of which a warm-up makes learning rates.

    ``torch.load(weights_only=True)`` refuses them, depending on the versions of torch and NumPy.
    """

    def plain(group: dict[str, Any]) -> dict[str, Any]:
        return {name: float(value) if isinstance(value, float) else value for name, value in group.items()}

    return state | {"param_groups": list(map(plain, state["param_groups"]))}


def _in_one_process(model: Any, train: Callable[..., Any]) -> Callable[..., Any]:
    """``model.train`` that refuses several devices: their processes are started without these callbacks."""

    def trained(trainer: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        make = trainer or model.task_map[model.task]["trainer"]

        def made(**given: Any) -> Any:
            one = make(**given)
            if one.world_size > 1:
                raise ConfigError(
                    f"device={one.args.device!r}: WeightAveraging averages in one process; name one device."
                )
            return one

        return train(trainer=made, **kwargs)

    return trained


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.polyak.pt")
