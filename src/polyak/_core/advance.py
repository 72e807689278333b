"""Advancing an EMA: one update of every average and its counters, all or nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Generic, TypeVar

from polyak._core.average_set import AverageSet
from polyak._core.clock import Clock
from polyak._core.lent_tensors import LentTensors
from polyak._core.optimizer_hook import Attachment
from polyak._core.swap_guard import active_exchanges
from polyak._core.tensors import T
from polyak._core.timeline import Pace, Timeline
from polyak._core.track import timelines_of
from polyak._core.watch import Watch
from polyak.errors import PlanError, SwapError

ModelT_co = TypeVar("ModelT_co", covariant=True)


class AdvancingEMA(Generic[ModelT_co, T]):
    """The counters of an EMA and the methods that advance it; what an update may not meet is refused.

    Args:
        averages: of the model, in its framework.
        every: update the averages every k-th step only.
        start: copy the model up to this step.
    """

    def __init__(self, averages: AverageSet[ModelT_co, T], every: int, start: int) -> None:
        self._averages, self._every, self._start = averages, every, start
        self._clock = Clock.at(0, {timeline.unit for timeline in self._timelines()})
        # The update in progress: its pace, the number made there after it, its thread.
        self._pending: tuple[Pace, int, int] | None = None
        self._lent: LentTensors[T] | None = None
        self._watches: list[Watch] = []
        self._attachment: Attachment | None = None

    @property
    def step(self) -> int:
        """Training steps so far."""
        return self._clock.step

    @property
    def every(self) -> int:
        """The averages are updated every k-th step only."""
        return self._every

    @property
    def start(self) -> int:
        """The step up to which the model is copied."""
        return self._start

    @property
    def _clock(self) -> Clock:
        """The counters now; ``_waiting`` are those after steps for which no update was due yet."""
        return self._pace.clock if self._waiting is None else self._waiting

    @_clock.setter
    def _clock(self, clock: Clock) -> None:
        pace = Pace(clock)
        pace.close()  # no schedule follows it
        self._pace, self._waiting = pace, clock if clock.waiting else None

    def update(self, steps: int = 1, *, samples: int | None = None, tokens: int | None = None) -> None:
        """Update every average with the model's current parameters. Call it after ``optimizer.step()``.

        Args:
            steps: training steps since the last call.
            samples: samples since then, for decays counted in samples.
            tokens: tokens since then, for decays counted in tokens.

        Raises:
            ConfigError: a count is missing or not positive, or the EMA is attached and updates itself.
            PlanError: a tensor was resized since averaging began.
            NonFiniteError: θ is not finite and ``on_nonfinite="raise"``.
            SwapError: the model holds an average now.
        """
        if self._attachment is not None:
            self._attachment.refuse_update()
        self._update(steps, samples, tokens)

    def _update(self, steps: int = 1, samples: int | None = None, tokens: int | None = None) -> None:
        """``update``, by hand or by an attached optimizer."""
        if active_exchanges or self._pending is not None or self._lent is not None:  # in few updates
            self._refuse_while_swapped("update")
        if self._averages.updater.capturing():
            self._averages.record()
        else:
            self._advance(steps, samples, tokens)

    def _advance(
        self,
        steps: int,
        samples: int | None,
        tokens: int | None,
        average: Callable[[Sequence[float], int], None] | None = None,
    ) -> bool:
        """Count steps and, if an update is due, ``average(weights, step)``; returns whether it was.

        After a training step none of this code is cached, so each line costs about a microsecond.
        """
        pace = self._pace
        if (
            self._waiting is not None
            or pace.made >= pace.most
            or steps is not pace.steps
            or samples is not pace.samples
            or tokens is not pace.tokens
        ):
            due = self._due(steps, samples, tokens)
            if due is None:
                return False
            pace = due
        if pace.made == len(pace.weights):
            pace.prepare(self._timelines())
        averages, made = self._averages, pace.made + 1
        step = pace.step + made * pace.stride
        if not averages.intact():
            averages.sync_with_model(step)
        self._pending = pace, made, get_ident()
        try:
            (average or averages.updater.update)(pace.weights[made - 1], step)
            if averages.unfit.names:  # after it, not before: an infinity moved towards itself is NaN
                averages.fill_nonfinite()
            self._count(pace, made)
        except BaseException:
            self._resolve()
            raise
        if self._watches:
            for watch in tuple(self._watches):
                watch.call()
        return True

    def _due(self, steps: int, samples: int | None, tokens: int | None) -> Pace | None:
        """The pace whose next update these counts make due; if they make none due, count them."""
        before = self._clock
        copying = before.step < self.start
        clock = before.later(steps, samples, tokens, copying)
        if clock.waiting < self.every and not (copying and clock.step >= self.start):
            self._waiting = clock
            return None
        if not self._pace.leads_to(clock, copying):
            self._pace.close()  # an interrupt may leave it to some of the timelines
            copies = -(-(self.start - self._pace.clock.step) // clock.waiting) if copying else 0
            pace = Pace(clock, copies, (steps, samples, tokens) if self._waiting is None else None)
            for timeline in self._timelines():
                timeline.follow(pace)
            self._pace = pace
        return self._pace

    def _timelines(self) -> list[Timeline]:
        return timelines_of(self._averages.tracks.values())

    def _count(self, pace: Pace, made: int) -> None:
        """Count the pending update. Twice is the same as once."""
        # One line: no interrupt comes between assignments without a call.
        pace.made, self._waiting, self._pending = made, None, None

    def _resolve(self) -> None:
        """After an interrupted update: count it if all averages were updated, forget it if none was."""
        if (pending := self._interrupted()) is not None:
            pace, made = pending
            applied = self._averages.updater.applied(pace.step_of(made))
            if applied:
                self._count(pace, made)
            elif applied is False:
                self._pending = None

    def _interrupted(self) -> tuple[Pace, int] | None:
        """An update that was interrupted, as in ``_pending``; not one that runs in another thread now."""
        pending = self._pending  # read once: another thread may clear it
        if pending is None:
            return None
        pace, made, thread = pending
        elsewhere = thread != get_ident() and any(t.ident == thread for t in threading.enumerate())
        return None if elsewhere else (pace, made)

    def _refuse_while_torn(self, verb: str) -> None:
        self._resolve()
        if (pending := self._interrupted()) is not None:
            pace, made = pending
            raise PlanError(
                f"{verb}: the update at step {pace.step_of(made)} was interrupted after some "
                "averages were updated and others were not. Continue from a saved state with ema.load(…) or "
                "load_state_dict(…), or start again from the model with ema.reset()."
            )

    def watch(self, watcher: Callable[[], None]) -> Watch:
        """Call ``watcher()`` after each update; the handle's ``remove()`` ends it."""
        return Watch(self._watches, watcher)

    def _refuse_while_swapped(self, verb: str) -> None:
        exchange = self._averages.plan.exchange(self._averages, collect=True) if active_exchanges else None
        if exchange is not None:
            mine = exchange.owner is self._averages
            whose = f"the average {exchange.track!r}" if mine else "the average of another EMA"
            raise SwapError(
                f"{verb}: the model holds {whose} now, not the raw weights. "
                "Leave the average_parameters() block first."
            )
        if self._pending is not None and verb not in ("reset", "load_state_dict"):
            self._refuse_while_torn(verb)
        if verb not in ("reset", "load_state_dict", "state_dict"):
            self._refuse_half_loaded(verb)

    def _refuse_half_loaded(self, verb: str) -> None:
        if self._lent is not None:
            self._lent.check(verb)
            self._lent = None
