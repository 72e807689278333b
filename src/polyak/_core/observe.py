"""Choosing among an EMA's averages by their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import SupportsFloat

from polyak._core.ema import BaseEMA, ModelT_co
from polyak._core.tensors import T
from polyak.errors import ConfigError
from polyak.schedules.adaptive import judged, metrics_of_each


class ObservedEMA(BaseEMA[ModelT_co, T]):
    """An EMA with the method that compares its averages."""

    def observe(self, evaluate: Callable[[ModelT_co], SupportsFloat] | Mapping[str, SupportsFloat]) -> float:
        """Evaluate every track of an ``Adaptive`` decay and decide which is followed from now on.

        ``ema.following`` is what ``average_parameters``, ``module``, ``save``, ``copy_to`` and
        ``BestCheckpoint`` mean when no track is named. Take ``ema.module`` again afterwards: the one taken
        before stays that of its own track. In several processes each must observe the same numbers: evaluate
        all data in each, or reduce the metrics first and pass them.

        Args:
            evaluate: takes the live model and returns its metric; called once for each track, while the model
                holds that average. Evaluate all on the same data, and call ``model.eval()`` first. Or the
                metrics themselves, by track.

        Returns:
            The metric of the track that is followed now.

        Raises:
            ConfigError: the decay is not ``Adaptive``, or a metric is missing, unknown or not finite.
            SwapError: an average is live.
            Exception: whatever ``evaluate`` raises; the model holds its raw weights again. After any error
                nothing was decided.

        Source: the rule is that of ``Adaptive``.
        """
        if self._adaptive is None:
            raise ConfigError(
                f"observe: decay={self.decay} leaves nothing to choose; make the EMA with "
                "decay=polyak.Adaptive(low=…, high=…), or name the track you want."
            )
        self._refuse_while_swapped("observe")
        if callable(evaluate):
            given: Mapping[str, SupportsFloat] = {
                name: self._metric(evaluate, name) for name in self._adaptive.decays
            }
        else:
            given = evaluate
        metrics = metrics_of_each(given, self._adaptive.decays)
        self._choice = judged(self._adaptive, self._choice, metrics)
        return metrics[self.following]

    def _metric(self, evaluate: Callable[[ModelT_co], SupportsFloat], track: str) -> SupportsFloat:
        with self.average_parameters(track) as model:
            return evaluate(model)
