"""Hugging Face's ``Trainer``: ``WeightAverage(trainer, 0.9999)``, before ``trainer.train()``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from polyak._core.track import named_decays
from polyak.errors import CheckpointError, MissingExtraError, PlanError, SwapError
from polyak.schedules import Decay
from polyak.torch import EMA
from polyak.torch.optimizer_hook import Attachment
from polyak.trainers.common import check_evaluate, check_not_sharded, numbers, say_beside

if TYPE_CHECKING:
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers.trainer import Trainer
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.trainer_utils import get_last_checkpoint  # pyright: ignore[reportUnknownVariableType]
    from transformers.training_args import TrainingArguments
    from transformers.utils.hub import PushToHubMixin
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

FILE = "polyak.safetensors"  # in each checkpoint: all that resuming takes
FOLDER = "average"  # in each checkpoint: the average as ``save_pretrained`` writes a model


class WeightAverage(TrainerCallback):
    """Average the model's weights after each optimizer step; evaluate and predict on the average.

    Training, ``trainer.model`` and every ``model.safetensors`` that the trainer saves are the raw weights.
    Beside each (checkpoints, ``save_model``, ``push_to_hub``) ``average/`` is the average, to be opened by
    ``from_pretrained`` (of an adapter: in the adapter's format). In checkpoints ``polyak.safetensors`` lets
    ``resume_from_checkpoint`` continue bit for bit. The best model is chosen by the average's metric; with
    ``load_best_model_at_end``, ``ema`` is its average.

    Args:
        trainer: it gets this callback; a trainer tells callbacks of the end of an evaluation only, so its
            ``evaluation_loop``, ``log``, ``save_model`` and ``train`` are wrapped.
        decay: β, a schedule, or several by name.
        evaluate: the track to evaluate and predict on; the first if None. "raw" for the raw weights.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is outside its rule, or the trainer shards the model.
    """

    def __init__(
        self,
        trainer: Trainer,
        decay: float | Decay | Mapping[str, float | Decay] = 0.9999,
        *,
        evaluate: str | None = None,
        **options: Any,
    ) -> None:
        check_evaluate(evaluate, named_decays(decay))
        check_not_sharded(cast(Any, trainer.accelerator).distributed_type.value)
        self._trainer, self._decay, self._evaluate, self._options = trainer, decay, evaluate, options
        self._ema: EMA | None = None
        self._attachment: Attachment | None = None
        self._resume: Path | None = None
        trainer.add_callback(self)
        trainer.evaluation_loop = self._on_the_average(cast(Any, trainer.evaluation_loop))
        trainer.log = self._with_numbers(trainer.log)
        trainer.save_model = self._with_the_average(cast(Any, trainer.save_model))
        trainer.train = self._told_of_resuming(cast(Any, trainer.train))

    @property
    def ema(self) -> EMA:
        """The average.

        Raises:
            PlanError: training has not begun, so there is nothing to average yet.
        """
        if self._ema is None:
            raise PlanError("there is no average before trainer.train() begins.")
        return self._ema

    def save_pretrained(self, folder: str | os.PathLike[str], track: str | None = None) -> None:
        """Write the average as a model that ``from_pretrained`` opens; an adapter as an adapter.

        Args:
            folder: made if it is not there.
            track: which average; the evaluated one if None.
        """
        ema, model = self.ema, cast(Any, self._trainer.model)
        track = track or (None if self._evaluate == "raw" else self._evaluate)
        if isinstance(model, PushToHubMixin):
            with ema.average_parameters(track):
                model.save_pretrained(folder)
            say_beside(folder, ema, track)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
            ema.save(Path(folder) / "model.safetensors", track)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model: nn.Module = kwargs["model"]
        optimizer: Optimizer = kwargs["optimizer"]
        if self._ema is None or self._ema.model is not model:
            self._ema = EMA(model, self._decay, **self._options)
        if self._resume is not None:
            self._load(self._resume)
        self._let_go()
        if isinstance(optimizer, AcceleratedOptimizer):  # it has no hooks of its own, and skips micro-batches
            optimizer = cast(Optimizer, optimizer.optimizer)
        self._attachment = self._ema.attach(optimizer)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self.ema.save(folder / FILE, resumable=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._let_go()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint))

    def _load(self, folder: Path) -> None:
        if not (folder / FILE).exists():
            raise CheckpointError(
                f"{folder} holds no {FILE}: it was written without WeightAverage, or not to its end. Go on "
                "from another checkpoint, or remove this callback."
            )
        self.ema.load(folder / FILE)

    def _let_go(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def _on_the_average(self, loop: Callable[..., Any]) -> Callable[..., Any]:
        def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
            ema = self._ema
            if ema is None or self._evaluate == "raw" or ema.model is not self._trainer.model:
                return loop(*args, **kwargs)
            # The trainer's loop tells a schedule-free optimizer to move its weights from those it trains to
            # those it evaluates. It must move the raw ones, so before the average is in their place.
            to_evaluation = getattr(cast(Any, self._trainer.optimizer), "eval", None)
            if callable(to_evaluation):
                to_evaluation()
            with ema.average_parameters(self._evaluate):
                return loop(*args, **kwargs)

        return evaluation_loop

    def _with_numbers(self, log: Callable[..., None]) -> Callable[..., None]:
        def logged(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            log({**logs, **numbers(self.ema)} if "loss" in logs else logs, *args, **kwargs)

        return logged

    def _with_the_average(self, save_model: Callable[..., None]) -> Callable[..., None]:
        def saved(output_dir: str | None = None, _internal_call: bool = False) -> None:
            ema, args = self._ema, self._trainer.args
            if ema is None or ema.model is not self._trainer.model or not args.should_save:
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
            if not (_internal_call and output_dir):  # in a checkpoint FILE says what the model is
                say_beside(folder, ema, "raw")

        return saved

    def _told_of_resuming(self, train: Callable[..., Any]) -> Callable[..., Any]:
        def trained(resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
            path: Any = resume_from_checkpoint
            if path is True:
                path = cast(Any, get_last_checkpoint(self._trainer.args.output_dir))
            self._resume = Path(path) if path else None
            try:
                return train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self._let_go()

        return trained
