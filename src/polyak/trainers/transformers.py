"""Hugging Face's ``Trainer``: ``WeightAveraging().attach(trainer)``, before ``trainer.train()``."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from polyak._core.track import DEFAULT_DECAY, Decays
from polyak.errors import CheckpointError, ConfigError, MissingExtraError, SwapError
from polyak.torch.random_numbers import same_random_numbers
from polyak.trainers._averaging import numbers, say_beside
from polyak.trainers._common import Averaging, EMAOptions, check_sharding, is_sharded
from polyak.trainers._evaluations import Evaluate

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint  # pyright: ignore[reportUnknownVariableType]
    from transformers.training_args import TrainingArguments
    from transformers.utils.hub import PushToHubMixin
    from typing_extensions import Unpack
else:
    try:
        from accelerate.optimizer import AcceleratedOptimizer
        from transformers.trainer import Trainer
        from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
        from transformers.trainer_utils import get_last_checkpoint
        from transformers.training_args import TrainingArguments
        from transformers.utils.hub import PushToHubMixin
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "accelerate"):
            raise
        raise MissingExtraError(str(error.name), "transformers") from error

FILE = "polyak.safetensors"  # in each checkpoint: the complete state
FOLDER = "average"  # in each checkpoint: the average as ``save_pretrained`` writes a model


class WeightAveraging(Averaging, TrainerCallback):
    """Average the model's weights after each optimizer step; evaluate and predict on the average.

    Training, ``trainer.model`` and every ``model.safetensors`` that the trainer saves are the raw weights.
    Beside each (checkpoints, ``save_model``, ``push_to_hub``) ``average/`` is the average, to be opened by
    ``from_pretrained`` (of an adapter: in the adapter's format). In checkpoints ``polyak.safetensors`` lets
    ``resume_from_checkpoint`` continue bit for bit. The best model is chosen by the average's metric; with
    ``load_best_model_at_end``, ``ema`` is its average.

    Args:
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        evaluate: the track to evaluate and predict on, or "raw"; the first track if None. "both" and lists
            evaluate each: metrics of all but the first are ``eval_raw/loss`` or ``eval_ema=long/loss``. With
            ``metric_for_best_model``, ``best/raw`` and ``best/average`` are then the best of each kind.
        report: write ``report.html`` at the end: in ``args.output_dir``, with the curves of its log.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is invalid.
    """

    _saves_parts = True
    _begins = "trainer.train() begins"
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
        self._trainer: Trainer | None = None
        self._resume: Path | None = None

    def attach(self, trainer: Trainer) -> WeightAveraging:
        """Average this trainer's model, and add this callback to the trainer.

        ``Trainer(callbacks=…)`` is not enough, since a trainer calls callbacks only after an evaluation: its
        ``evaluation_loop``, ``log``, ``save_model`` and ``train`` are wrapped.

        Args:
            trainer: the trainer, before ``train()``.

        Returns:
            This callback.

        Raises:
            ConfigError: the trainer shards the model by something else than ``fully_shard``.
        """
        check_sharding(trainer.accelerator)
        given: Any = trainer  # Trainer's types of what is wrapped here are incomplete
        self._trainer = trainer
        trainer.add_callback(self)
        trainer.evaluation_loop = self._evaluating_each(trainer, given.evaluation_loop)
        trainer.log = self._with_numbers(trainer.log)
        trainer.save_model = self._with_the_average(trainer, given.save_model)
        trainer.train = self._noting_resume(trainer, given.train)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str], track: str | None = None) -> None:
        """Write the average as a model that ``from_pretrained`` opens; an adapter as an adapter.

        Of a sharded average every process calls this, and the first writes whole tensors.

        Args:
            folder: created if missing.
            track: an average, or "raw"; by default the evaluated average.
        """
        ema, track = self.ema, self._saved_track(track)
        model = ema.model
        if isinstance(model, PushToHubMixin):
            with self._with_weights(track):
                whole = self._whole_state()
                if self._writes():
                    model.save_pretrained(folder, state_dict=whole)
            if self._writes():
                say_beside(folder, ema, track)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            ema.save(Path(folder) / "model.safetensors", track)

    def _whole_state(self) -> dict[str, Any] | None:
        """On the first process the state dict with whole tensors; None where the model's own has them."""
        if not is_sharded(self.ema) or self._trainer is None:
            return None
        return cast(Any, self._trainer.accelerator).get_state_dict(self.ema.model)

    def _writes(self) -> bool:
        """Whether this process writes files; the others help with those of a sharded average."""
        trainer = self._trainer
        return trainer is None or not is_sharded(self.ema) or bool(cast(Any, trainer.args).should_save)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._trainer is None:
            raise ConfigError(
                "callbacks=[WeightAveraging(…)]: callbacks are not called before an evaluation. Make the "
                "trainer without it, and then call WeightAveraging(…).attach(trainer)."
            )
        model: nn.Module = kwargs["model"]
        optimizer: Optimizer = kwargs["optimizer"]
        if self._ema is None or self._ema.model is not model:
            self._make(model, state.max_steps)
        if self._resume is not None:
            self._load(self._resume)
        if isinstance(optimizer, AcceleratedOptimizer):  # it has no hooks of its own, and skips micro-batches
            optimizer = cast(Optimizer, optimizer.optimizer)
        self._follow(optimizer)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the best of each kind, by all evaluations of the run, which checkpoints hold too."""
        metric = args.metric_for_best_model
        if metric is None or not self._others or not (args.should_save or is_sharded(self.ema)):
            return
        for weights, prefix in self._evaluations.items():
            name = _named("eval_" + metric.removeprefix("eval_"), prefix)
            sign = 1 if args.greater_is_better else -1
            values = [sign * entry[name] for entry in state.log_history if name in entry]
            if values and all(values[-1] > value for value in values[:-1]):
                self.save_pretrained(Path(str(args.output_dir)) / "best" / weights, weights)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero or is_sharded(self.ema):
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self.ema.save(folder / FILE, resumable=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._unfollow()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint))
        folder, writes = Path(str(args.output_dir)), state.is_world_process_zero
        if self._reports and writes:
            folder.mkdir(parents=True, exist_ok=True)
            state.save_to_json(str(folder / "trainer_state.json"))  # as ``trainer.save_state()`` does
        self._report(folder, writes)

    def _load(self, folder: Path) -> None:
        if not (folder / FILE).exists():
            raise CheckpointError(
                f"{folder} holds no {FILE}: it was written without WeightAveraging, or is incomplete. Resume "
                "from another checkpoint, or remove this callback."
            )
        self.ema.load(folder / FILE)

    def _evaluating_each(
        self, trainer: Trainer, loop: Callable[..., EvalLoopOutput]
    ) -> Callable[..., EvalLoopOutput]:
        def evaluation_loop(
            dataloader: object, description: str, *args: Any, **kwargs: Any
        ) -> EvalLoopOutput:
            ema = self._ema
            if ema is None or ema.model is not trainer.model:
                return loop(dataloader, description, *args, **kwargs)
            # The trainer's loop tells a schedule-free optimizer to move its weights from those it trains to
            # those it evaluates. It must move the raw ones, so before the average is in their place.
            to_evaluation = getattr(cast(object, trainer.optimizer), "eval", None)
            if callable(to_evaluation):
                to_evaluation()
            asides: dict[str, float] = {}
            for weights in () if description == "Prediction" else self._others:
                with same_random_numbers(), _without_callbacks(trainer), self._with_weights(weights):
                    metrics = loop(dataloader, description, *args, **kwargs).metrics or {}
                asides |= {_named(name, self._evaluations[weights]): value for name, value in metrics.items()}
            with self._with_weights(self._plain):
                output = loop(dataloader, description, *args, **kwargs)
            return output._replace(metrics={**(output.metrics or {}), **asides})

        return evaluation_loop

    def _with_numbers(self, log: Callable[..., None]) -> Callable[..., None]:
        def logged(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            log({**logs, **numbers(self.ema)} if "loss" in logs else logs, *args, **kwargs)

        return logged

    def _with_the_average(self, trainer: Trainer, save_model: Callable[..., None]) -> Callable[..., None]:
        def saved(output_dir: str | None = None, _internal_call: bool = False) -> None:
            ema, args = self._ema, trainer.args
            if ema is None or ema.model is not trainer.model or not (args.should_save or is_sharded(ema)):
                save_model(output_dir, _internal_call)
                return
            if ema.live != "raw":
                raise SwapError(
                    f"save_model: the model holds the average {ema.live!r} now, which would be saved as the "
                    "raw weights. Save when the evaluation is over."
                )
            folder = Path(str(output_dir or args.output_dir))
            self.save_pretrained(folder / FOLDER)  # first, because save_model may end in a push to the Hub
            save_model(output_dir, _internal_call)
            if args.should_save and not (
                _internal_call and output_dir
            ):  # in a checkpoint FILE says what the model is
                say_beside(folder, ema, "raw")

        return saved

    def _noting_resume(self, trainer: Trainer, train: Callable[..., Any]) -> Callable[..., Any]:
        def trained(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            path: Any = resume_from_checkpoint
            if path is True:
                path = cast(Any, get_last_checkpoint(trainer.args.output_dir))
            self._resume = Path(path) if path else None
            try:
                return train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self._unfollow()

        return trained


def _named(metric: str, prefix: str) -> str:
    """``eval_raw/loss``: the trainer and its loggers expect the prefix ``eval_``."""
    group, _, name = metric.partition("_")
    return f"{group}_{prefix}{name}"


@contextmanager
def _without_callbacks(trainer: Trainer) -> Generator[None]:
    """No callback is called in this block."""
    handler: Any = trainer.callback_handler
    callbacks, handler.callbacks = handler.callbacks, []
    try:
        yield
    finally:
        handler.callbacks = callbacks
