"""Ignite: ``WeightAverage(model, optimizer, 0.9999).attach(trainer, evaluator)``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from polyak.errors import MissingExtraError
from polyak.schedules import Decay
from polyak.schedules.decay import check_whole
from polyak.torch import EMA
from polyak.trainers.common import check_evaluate, closing, numbers

if TYPE_CHECKING:
    from ignite.engine import Engine, Events
else:
    try:
        from ignite.engine import Engine, Events
    except ModuleNotFoundError as error:
        if error.name != "ignite":
            raise
        raise MissingExtraError("Ignite", "ignite") from error


class WeightAverage:
    """Average a model's weights after each optimizer step, and run evaluators on the average.

    Evaluators hold the average from the start of an epoch to its end, so handlers of their ``COMPLETED`` find
    the raw weights again. Give ``Checkpoint`` both: ``{"model": model, "ema": average.ema, …}``.

    Args:
        model: what is trained.
        optimizer: whose steps count.
        decay: β, a schedule, or several by name.
        evaluate: the track to evaluate on; the first if None. "raw" for the raw weights.
        log_every: iterations between two sets of ``ema/…`` numbers in ``trainer.state.metrics``.
        options: every other argument of ``polyak.EMA``.

    Raises:
        ConfigError: an argument is outside its rule.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        decay: float | Decay | Mapping[str, float | Decay] = 0.9999,
        *,
        evaluate: str | None = None,
        log_every: int = 100,
        **options: Any,
    ) -> None:
        check_whole("log_every", log_every, 1)
        self.ema = EMA(model, decay, **options)
        check_evaluate(evaluate, self.ema.tracks)
        self._evaluate, self._log_every = evaluate, log_every
        self.ema.attach(optimizer)

    def attach(self, trainer: Engine, *evaluators: Engine) -> None:
        """Log in one engine and evaluate in others.

        Args:
            trainer: gets the numbers.
            evaluators: run on the average.
        """
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=self._log_every), self._log)
        for evaluator in evaluators:
            live = ExitStack()
            evaluator.add_event_handler(Events.EPOCH_STARTED, self._enter, live)
            evaluator.add_event_handler(Events.EPOCH_COMPLETED, live.close)
            # No event is sure to come after an exception or an interrupt.
            evaluator.run = closing(live, cast(Any, evaluator.run))

    def _log(self, trainer: Engine) -> None:
        trainer.state.metrics.update(numbers(self.ema))

    def _enter(self, evaluator: Engine, live: ExitStack) -> None:
        if self._evaluate != "raw":
            live.enter_context(self.ema.average_parameters(self._evaluate))
