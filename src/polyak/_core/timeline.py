"""A schedule in use: its time so far, and the history from which a profile follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from polyak._core.clock import Clock
from polyak.schedules import COPY, Decay, History, Profile
from polyak.schedules.decay import Unit, composed
from polyak.schedules.runs import length


class Ahead(NamedTuple):
    """Precomputed decays of the next updates: from ``first`` on, ``advance`` of the schedule's unit apart."""

    first: int
    advance: int
    betas: Sequence[float]


_NOTHING_AHEAD = Ahead(0, 0, ())


@dataclass
class Timeline:
    """The time of the tensors that share a schedule: those of a track, or of one pattern of a ``ByName``.

    decay: the schedule.  unit, clock: its time so far.
    beta: the composed decay last applied, 1 before the first.
    """

    decay: Decay
    clock: int = 0
    beta: float = 1.0
    history: History = field(default_factory=History)
    _ahead: Ahead = field(default=_NOTHING_AHEAD, compare=False)
    _entered: Clock | None = field(default=None, compare=False)  # state after the last update
    unit: Unit = field(init=False)

    def __post_init__(self) -> None:
        self.unit = self.decay.unit

    def restart(self, step: int) -> None:
        """Restart schedule and history at ``step``."""
        self.clock, self.beta, self.history = 0, 1.0, History()
        if step:
            self.history.restart(step)

    def next_beta(self, clock: Clock) -> float:
        """The composed decay of an update that brings the EMA to ``clock``.

        It is read from a precomputed block as long as updates are evenly spaced; the first one at another
        spacing is computed alone, and a new block when a second follows.
        """
        advance: int = getattr(clock, self.unit)
        first, size, betas = self._ahead
        place, off = divmod(self.clock - first, advance)
        if off or size != advance or not 0 <= place < len(betas):
            count = self.decay.ahead if size == advance else 1
            betas = composed(self.decay, self.clock, advance, count).tolist()
            self._ahead, place = Ahead(self.clock, advance, betas), 0
        return betas[place]

    def record(self, beta: float, clock: Clock, copying: bool) -> None:
        """Enter an update that brought the EMA to ``clock``; twice is the same as once."""
        if self._entered is clock:
            return
        history, advance = self.history, getattr(clock, self.unit)
        # One line each: no interrupt comes between assignments without a call.
        if copying:
            copied = history.copied(clock.step)
            self.history, self.beta, self.clock, self._entered = copied, beta, self.clock + advance, clock
        elif history.extended_by(self.decay, self.clock, clock.waiting, advance):
            count, end = history.count + 1, self.clock + advance
            history.count, self.beta, self.clock, self._entered = count, beta, end, clock
        else:
            later = history.followed_by(self.decay, self.clock, clock.waiting, advance)
            self.history, self.beta, self.clock, self._entered = later, beta, self.clock + advance, clock

    @property
    def steps_averaged(self) -> int:
        """Training steps since it began, without those that copied."""
        return length([run for run in self.history.runs if run.decay != COPY])

    @property
    def profile(self) -> Profile:
        """The exact weight of every point of the trajectory in these tensors' averages."""
        return self.history.profile()
