"""Lightning: ``Trainer(callbacks=[WeightAveraging()])``."""

from __future__ import annotations

import os
import warnings
from collections import ChainMap
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from polyak._core.track import DEFAULT_DECAY, Decays
from polyak.errors import CheckpointError, ConfigError, MissingExtraError
from polyak.torch.random_numbers import same_random_numbers
from polyak.trainers._averaging import numbers, start_in, write_report
from polyak.trainers._common import Averaging, EMAOptions, is_sharded
from polyak.trainers._evaluations import Evaluate
from polyak.trainers.checkpoint import KEY, key_of
from polyak.trainers.checkpoint import load as load

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import ProgressBar
    from lightning.pytorch.loggers import TensorBoardLogger
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
    from typing_extensions import Unpack
else:
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
        from lightning.pytorch.callbacks import ProgressBar
        from lightning.pytorch.loggers import TensorBoardLogger
        from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
    except ModuleNotFoundError as missing:
        if missing.name != "lightning":
            raise
        try:  # the same classes under their older name
            from pytorch_lightning import Callback, LightningModule, Trainer
            from pytorch_lightning.callbacks import ProgressBar
            from pytorch_lightning.loggers import TensorBoardLogger
            from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy
        except ModuleNotFoundError as error:
            if error.name != "pytorch_lightning":
                raise
            raise MissingExtraError("Lightning", "lightning") from error


class WeightAveraging(Averaging, Callback):
    """Average the module's weights after each optimizer step; validate, test and predict on the average.

    Training, ``state_dict`` in checkpoints and the module after ``fit`` are the raw weights. The average is
    in ``ema`` and, complete, under ``"polyak"`` in each checkpoint, those of ``save_weights_only=True``
    included: ``ckpt_path`` continues bit for bit. Under ``ModelParallelStrategy`` and under ``shard=`` each
    process keeps its part of the average, and ``polyak.safetensors`` in the checkpoint's folder (beside it,
    if it is a file) has all of it.

    Args:
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        evaluate: the track to validate, test and predict on, or "raw"; the first track if None. "both" and
            lists validate and test each: all but the first log as ``raw/val_loss`` or ``ema=long/val_loss``.
        optimizer: the index of the optimizer whose steps count, if the module has several.
        name: distinguishes several of these callbacks, for a generator and a critic, or one module twice:
            ``"polyak.name"`` in checkpoints, ``ema/name/…`` in logs.
        report: write ``report.html`` at the end into ``trainer.log_dir``, with the curves of its CSV or
            TensorBoard logger. Several callbacks write one, with all their averages.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is invalid.
    """

    _saves_parts = True
    _begins = "fit() begins or a checkpoint that holds one is tested"
    _has_folder = True

    def __init__(
        self,
        decay: Decays = DEFAULT_DECAY,
        *,
        evaluate: Evaluate = None,
        optimizer: int | None = None,
        name: str = "",
        report: bool = False,
        **options: Unpack[EMAOptions],
    ) -> None:
        super().__init__(decay, evaluate, options, report)
        self.name, self._key, self._group = name, key_of(name), f"ema/{name}" if name else "ema"
        self._optimizer = optimizer
        self._live = ExitStack()  # open while the average is in the module
        self._now = self._plain  # the weights that are evaluated now, or next
        self._found: dict[str, Any] | None = None  # in the checkpoint of this run
        self._strategy: Any = None  # whose checkpoints hold the average
        self._stage = ""
        self._logged = 0
        self._fitting = False  # whether this fit has its average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if [one.name for one in _averages(trainer)].count(self.name) > 1:
            raise ConfigError(
                f"callbacks: several WeightAveraging have name={self.name!r}, and a checkpoint holds one "
                'average of each name. Give them names, as in WeightAveraging(name="slow").'
            )
        self._stage, self._found = stage, None
        validating = trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop
        for loop in (*validating, trainer.test_loop, trainer.predict_loop):
            loop.run = partial(self._evaluate_each, trainer, partial(type(loop).run, loop))
        if stage == "fit":
            _warn_of_raw_weights(type(pl_module))
        if self._strategy is not trainer.strategy:
            self._strategy = trainer.strategy
            # Lightning asks no callback what a file of save_weights_only=True is to hold.
            saving = partial(self._save_with, trainer, trainer.strategy.save_checkpoint)
            trainer.strategy.save_checkpoint = saving

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise ConfigError(
                f"strategy={type(trainer.strategy).__name__} shards the model so that no average can follow "
                "it. Use ModelParallelStrategy with torch.distributed.fsdp.fully_shard in configure_model, "
                'or strategy="ddp".'
            )
        self._fitting = False
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._begin_fit(trainer, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Strategies that shard read the checkpoint after ``on_fit_start``, and before this.

        To load its state they take a step of the optimizer, which must not be followed yet.
        """
        if not self._fitting:
            self._begin_fit(trainer, pl_module)

    on_train_start = on_sanity_check_start

    def _begin_fit(self, trainer: Trainer, module: LightningModule) -> None:
        self._begin(trainer, module)
        self._refuse_two_at_once(trainer)
        which = self._optimizer
        if which is None and len(trainer.optimizers) != 1:
            raise ConfigError(
                f"optimizer=None: the module has {len(trainer.optimizers)} optimizers; say which one's steps "
                "count, as in WeightAveraging(optimizer=0)."
            )
        if which is not None and not 0 <= which < len(trainer.optimizers):
            raise ConfigError(f"optimizer={which}: the module has {len(trainer.optimizers)}, counted from 0.")
        self._follow(trainer.optimizers[which or 0])
        self._fitting = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        step = self.ema.step
        every: int = trainer.log_every_n_steps  # pyright: ignore
        if step != self._logged and every and step % every == 0:
            self._logged, logs = step, numbers(self.ema, self._group)
            for logger in trainer.loggers:
                logger.log_metrics(logs, step=trainer.global_step - 1)  # Lightning's own count begins at 0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers if self._reports else ():
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        reported = [one for one in _averages(trainer) if one._reports and one._ema is not None]
        if self in reported[-1:]:  # the last one writes, since one report has all
            write_report(folder, {one.name: one.ema for one in reported}, trainer.is_global_zero)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_average_of(pl_module):
            self._go_live()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._live.close()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release_all()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release_all()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._ema is None:
            return
        with self._raw_weights(trainer) as was_live:  # a save in the middle of a validation
            if was_live:  # a copy, because going back to the average may write to the same memory
                raw = deepcopy(trainer.strategy.lightning_module_state_dict())
                checkpoint["state_dict"] = {name: raw[name] for name in checkpoint["state_dict"]}
            ema = self._ema
            state = {"start": ema.start, "file": True} if is_sharded(ema) else ema.state_dict()
            checkpoint[self._key] = {"state_dict": "raw", "ema": state}
        # Lightning asks no callback when it loads a file without this key, and warns of those it misses.
        checkpoint.setdefault("callbacks", {})[self.state_key] = {"key": self._key}

    @property
    def state_key(self) -> str:
        """The callback's name in Lightning's warning that it is missing."""
        return f"polyak.trainers.lightning.WeightAveraging(name={self.name!r})"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._found = checkpoint.get(self._key)

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Make an average of this run's initial weights, or load the one saved with them."""
        path, found = trainer.ckpt_path, self._found
        self._found = None
        if self._stage == "fit" or found is not None:
            if self._ema is None or self._ema.model is not module:
                run = trainer.estimated_stepping_batches if self._stage == "fit" else None
                self._make(module, run, None if found is None else _start_of(found["ema"]))
            elif path and found is None:
                self._ema.reset()
        if found is not None and path and "file" in found["ema"]:
            self.ema.load(self._file(path))
        elif found is not None:
            self.ema.load_state_dict(found["ema"])
        elif path and self._stage == "fit":
            warnings.warn(
                f"{path} holds no average under {self._key!r}: averaging begins at its weights.", stacklevel=2
            )
        elif self._evaluations.keys() == {"raw"}:
            return
        elif path:
            raise CheckpointError(
                f"{path} holds no average to evaluate under {self._key!r}. Save while WeightAveraging "
                'is among the callbacks, or evaluate the raw weights: WeightAveraging(evaluate="raw").'
            )
        elif not self._has_average_of(module):
            warnings.warn(
                "there is no average of this module, so its raw weights are evaluated. "
                "ckpt_path=… evaluates the average in a checkpoint.",
                stacklevel=2,
            )

    def _has_average_of(self, module: LightningModule) -> bool:
        return self._ema is not None and self._ema.model is module

    def _swaps(self, module: LightningModule) -> bool:
        return self._has_average_of(module) and self._evaluations.keys() != {"raw"}

    def _go_live(self) -> None:
        self._live.enter_context(self._with_weights(self._now))

    def _evaluate_each(self, trainer: Trainer, run: Callable[[], Any]) -> Any:
        """Evaluate each of the weights. Those without prefix come last: only these call callbacks."""
        module, averages = trainer.lightning_module, _averages(trainer)
        if self._stage != "fit":
            for average in averages:
                average._begin(trainer, module)
            for average in averages:
                average._refuse_two_at_once(trainer)
        if trainer.sanity_checking or trainer.predicting:
            return run()
        having = [average for average in averages if average._has_average_of(module)]
        asides: list[Any] = []
        for prefix in dict.fromkeys(one._evaluations[weights] for one in having for weights in one._others):
            with same_random_numbers(), self._without_side_effects(trainer, prefix):
                asides.append(run())
        return [dict(ChainMap(*of_one_loader)) for of_one_loader in zip(run(), *asides, strict=True)]

    @contextmanager
    def _without_side_effects(self, trainer: Any, prefix: str) -> Generator[None]:
        """An evaluation in this block uses the weights of this prefix, logs with it, and has no callbacks."""
        module, callbacks, log = trainer.lightning_module, trainer.callbacks, trainer.lightning_module.log

        def prefixed(name: str, *args: Any, **kwargs: Any) -> None:
            log(prefix + name, *args, **kwargs)

        averages = _averages(trainer)
        for average in averages:
            named = {name: weights for weights, name in average._evaluations.items()}
            average._now = named.get(prefix, average._plain)
        trainer.callbacks = [one for one in callbacks if isinstance(one, (WeightAveraging, ProgressBar))]
        module.log = prefixed
        try:
            yield
        finally:
            del module.log
            trainer.callbacks = callbacks
            for average in averages:
                average._now = average._plain

    def _refuse_two_at_once(self, trainer: Trainer) -> None:
        """A parameter can hold one average at a time."""
        module = trainer.lightning_module
        for other in _averages(trainer):
            if other is self or not all(one._swaps(module) for one in (self, other)):
                continue
            if shared := self._averaged() & other._averaged():
                raise ConfigError(
                    f"callbacks: WeightAveraging {self.name!r} and {other.name!r} would both evaluate "
                    f'{min(shared)}. Give one of them evaluate="raw", or use one callback with two tracks.'
                )

    def _averaged(self) -> set[str]:
        return {name for track in self.ema.tracks.values() for name in track.tensors}

    def _save_with(
        self,
        trainer: Trainer,
        save: Callable[..., None],
        checkpoint: dict[str, Any],
        filepath: str | os.PathLike[str],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if self._key not in checkpoint:
            self.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
        save(checkpoint, filepath, *args, **kwargs)
        if self._ema is not None and is_sharded(self._ema):
            with self._raw_weights(trainer):
                self._ema.save(self._file(filepath), resumable=True)

    @contextmanager
    def _raw_weights(self, trainer: Trainer) -> Generator[bool]:
        """The module holds its raw weights in this block; whether it held an average before."""
        live = [one for one in _averages(trainer) if one._ema is not None and one._ema.live != "raw"]
        for one in live:
            one._live.close()
        yield bool(live)
        for one in live:
            one._go_live()

    def _file(self, checkpoint: str | os.PathLike[str]) -> Path:
        """Where a sharded average is kept: in a checkpoint that is a folder, otherwise beside it."""
        path, name = Path(checkpoint), f"{self._key}.safetensors"
        return path / name if path.is_dir() else path.with_name(f"{path.name}.{name}")

    def _release_all(self) -> None:
        self._live.close()
        self._unfollow()


_WARNING: WeakSet[Callable[..., None]] = WeakSet()  # hooks that warn already


def _warn_of_raw_weights(kind: type[LightningModule]) -> None:
    """Make the class's own hook warn, since ``kind.load_from_checkpoint`` calls no callbacks."""
    inner = kind.on_load_checkpoint
    if inner in _WARNING:
        return

    @wraps(inner)
    def on_load_checkpoint(self: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None and any(  # pyright: ignore[reportPrivateUsage]
            key.partition(".")[0] == KEY for key in checkpoint
        ):
            warnings.warn(
                "load_from_checkpoint loads the raw weights. The checkpoint also holds their average: "
                "polyak.trainers.lightning.load(path, module) returns it, and "
                "trainer.test(module, ckpt_path=path) tests it if WeightAveraging is among the callbacks.",
                stacklevel=2,
            )
        inner(self, checkpoint)

    _WARNING.add(on_load_checkpoint)
    kind.on_load_checkpoint = on_load_checkpoint


def _start_of(kept: Mapping[str, Any]) -> int:
    """Of what a checkpoint keeps: a state, or what stands for the file of a sharded average."""
    return kept["start"] if "file" in kept else start_in(kept)


def _averages(trainer: Trainer) -> list[WeightAveraging]:
    return [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # pyright: ignore
