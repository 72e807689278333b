"""Ignite: ``WeightAveraging(model=model, optimizer=optimizer).attach(trainer, evaluator)``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from polyak._core.track import DEFAULT_DECAY, Decays
from polyak.errors import MissingExtraError
from polyak.schedules.decay import check_integer
from polyak.torch.random_numbers import same_random_numbers
from polyak.trainers._averaging import Folder, closing, numbers
from polyak.trainers._common import Averaging, EMAOptions
from polyak.trainers._evaluations import Evaluate

if TYPE_CHECKING:
    from ignite.engine import Engine, Events, State
    from typing_extensions import Unpack
else:
    try:
        from ignite.engine import Engine, Events
    except ModuleNotFoundError as error:
        if error.name != "ignite":
            raise
        raise MissingExtraError("Ignite", "ignite") from error


class WeightAveraging(Averaging):
    """Average a model's weights after each optimizer step, and run evaluators on the average.

    Evaluators hold the average from the start of an epoch to its end, so handlers of their ``COMPLETED`` find
    the raw weights again. Give ``Checkpoint`` both: ``{"model": model, "ema": average.ema, …}``.

    Args:
        decay: β, a schedule, a function of the step, several by name, or an ``Adaptive``, whose
            followed track counts as the first.
        model: the model in training.
        optimizer: the optimizer whose steps count.
        evaluate: the track to evaluate on, or "raw"; the first track if None. "both" and lists run evaluators
            once on each: metrics of all but the first are ``raw/accuracy`` or ``ema=long/accuracy``, and
            ``COMPLETED`` comes once, when all are there.
        log_every: iterations between two sets of ``ema/…`` numbers in ``trainer.state.metrics``.
        report: the folder to write ``report.html`` into at the end, with the curves of the logs there.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is invalid.
    """

    def __init__(
        self,
        decay: Decays = DEFAULT_DECAY,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        evaluate: Evaluate = None,
        log_every: int = 100,
        report: Folder = None,
        **options: Unpack[EMAOptions],
    ) -> None:
        check_integer("log_every", log_every, 1)
        super().__init__(decay, evaluate, options, report)
        self._log_every = log_every
        self._now = self._plain  # whose weights are evaluated now, or next
        self._make(model)
        self._follow(optimizer)

    def attach(self, trainer: Engine, *evaluators: Engine) -> None:
        """Log in one engine and evaluate in others.

        Args:
            trainer: the engine that gets the numbers.
            evaluators: the engines that run on the average.
        """
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=self._log_every), self._log)
        trainer.add_event_handler(Events.COMPLETED, lambda: self._report())
        for evaluator in evaluators:
            live = ExitStack()
            evaluator.add_event_handler(Events.EPOCH_STARTED, self._enter, live)
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, live.close)
            # No event is sure to come after an exception or an interrupt.
            evaluator.run = closing(live, self._running_each(evaluator, cast(Any, evaluator.run)))

    def _log(self, trainer: Engine) -> None:
        trainer.state.metrics.update(numbers(self.ema))

    def _enter(self, evaluator: Engine, live: ExitStack) -> None:
        live.enter_context(self._with_weights(self._now))

    def _running_each(self, evaluator: Engine, run: Callable[..., State]) -> Callable[..., State]:
        prefixes = tuple(self._evaluations[weights] for weights in self._others)

        def each(*args: Any, **kwargs: Any) -> State:
            asides: dict[str, Any] = {}
            for weights in self._others:
                self._now = weights
                with (
                    evaluator.add_event_handler(Events.EPOCH_COMPLETED, _skip_completed),
                    same_random_numbers(),
                ):
                    metrics = run(*args, **kwargs).metrics
                own = {name: value for name, value in metrics.items() if not name.startswith(prefixes)}
                asides |= self._prefixed(weights, own)
            self._now = self._plain
            with evaluator.add_event_handler(Events.EPOCH_COMPLETED, _add, asides):
                return run(*args, **kwargs)

        return each


def _skip_completed(evaluator: Engine) -> None:
    if evaluator.state.epoch == evaluator.state.max_epochs:
        evaluator.terminate(skip_completed=True)


def _add(evaluator: Engine, metrics: dict[str, Any]) -> None:
    evaluator.state.metrics.update(metrics)
