"""Schedules in use. Evenly spaced updates are prepared together, and counted by one number.

Right after a training step nothing of what an update needs is in the caches, so that each object it touches
costs time. Clocks, decays and histories are therefore computed from that number when they are read. It also
makes an update count everywhere or nowhere, whenever an interrupt comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from polyak._core.clock import Clock
from polyak.schedules import COPY, Decay, History, Profile
from polyak.schedules.decay import Unit, composed
from polyak.schedules.runs import length

_MOST = 512  # updates after which a pace ends, so that its lists stay short


class Pace:
    """Evenly spaced updates.

    step: of the update before the first.  stride: training steps from one to the next.
    weights: 1-β of each update, schedule by schedule; of those that are prepared.
    made: the number made so far.  most: the number that may be made.
    steps, samples, tokens: of the call for each update, if each is due to a single one; otherwise the same as
        nothing that is passed.

    Args:
        first: the clock to which the first update brings the EMA.
        copies: the number of updates from the first on that copy the model; 0 if it is averaged.
        call: steps, samples and tokens.
    """

    def __init__(
        self, first: Clock, copies: int = 0, call: tuple[object, object, object] | None = None
    ) -> None:
        self.first, self.copying, self.made, self.most = first, copies > 0, 0, min(copies or _MOST, _MOST)
        self.step, self.stride = first.step - first.waiting, first.waiting
        self.steps, self.samples, self.tokens = call or (_NEVER, _NEVER, _NEVER)
        self.weights: list[tuple[float, ...]] = []

    @property
    def clock(self) -> Clock:
        """The EMA's after the last update."""
        return self._brought(self.made).acted()

    def leads_to(self, clock: Clock, copying: bool) -> bool:
        """Whether its next update is one that brings the EMA to ``clock``."""
        more = self.made < self.most
        return more and copying == self.copying and clock == self._brought(self.made + 1)

    def prepare(self, timelines: Sequence[Timeline]) -> None:
        """Prepare the next updates: the first one alone, since it may be the only one at this pace.

        Args:
            timelines: all that follow this pace, in the order of an update's weights.
        """
        known = min([timeline.decay.ahead for timeline in timelines], default=1)
        count = min(self.most - self.made, known) if self.made else 1
        betas = [timeline.prepare(count) for timeline in timelines]
        self.weights[self.made :] = [tuple([1 - b for b in each]) for each in zip(*betas, strict=True)]

    def close(self) -> None:
        """End it: no further update belongs to it. Call this before a schedule follows another pace."""
        self.most = 0

    def step_of(self, update: int) -> int:
        """The training step of its first, second, … update."""
        return self.step + update * self.stride

    def _brought(self, updates: int) -> Clock:
        _, waiting, steps, samples, tokens = self.first
        return Clock(self.step_of(updates), waiting, steps, samples, tokens)


_NEVER = object()
_AT_REST = Pace(Clock(0, 0, None, None, None))


class Course(NamedTuple):
    """A schedule during the updates of a pace.

    clock, beta, history: before the first.
    advance: of the schedule's unit, from one to the next.
    betas: the composed decay of each that is prepared.
    begun: the history after the first.
    """

    pace: Pace
    clock: int
    beta: float
    history: History
    advance: int
    betas: list[float]
    begun: History


class Timeline:
    """The time of the tensors that share a schedule: those of a track, or of one pattern of a ``ByName``.

    Args:
        decay: the schedule.
        clock: its time so far, in its unit.
        beta: the composed decay last applied, 1 before the first.
        history: the updates so far, from which the profile follows.
    """

    def __init__(
        self, decay: Decay, clock: int = 0, beta: float = 1.0, history: History | None = None
    ) -> None:
        self.decay = decay
        self.unit: Unit = decay.unit
        self._course = _resting(clock, beta, History() if history is None else history)

    def restart(self, step: int) -> None:
        """Restart schedule and history at ``step``."""
        self._course = _resting(0, 1.0, History.copied(step) if step else History())

    @property
    def clock(self) -> int:
        """Its time so far, in its unit."""
        course = self._course
        return course.clock + course.pace.made * course.advance

    @property
    def beta(self) -> float:
        """The composed decay last applied, 1 before the first."""
        course = self._course
        made = course.pace.made
        return course.betas[made - 1] if made else course.beta

    @property
    def history(self) -> History:
        """The updates so far."""
        course = self._course
        pace, made = course.pace, course.pace.made
        if not made:
            return course.history
        if pace.copying:
            return History.copied(pace.step_of(made))
        return course.begun.longer(made - 1)

    def follow(self, pace: Pace) -> None:
        """Go on at another pace; until its first update nothing changes."""
        clock, beta, history = self.clock, self.beta, self.history
        advance: int = getattr(pace.first, self.unit)
        begun = history if pace.copying else history.after(self.decay, clock, pace.stride, advance)
        self._course = Course(pace, clock, beta, history, advance, [], begun)

    def prepare(self, count: int) -> Sequence[float]:
        """The composed decays of the next updates at its pace."""
        course = self._course
        pace = course.pace
        if pace.copying:
            betas = [0.0] * count
        else:
            betas = composed(self.decay, self.clock, course.advance, count).tolist()
        course.betas[pace.made :] = betas
        return betas

    @property
    def steps_averaged(self) -> int:
        """Training steps since it began, without those that copied."""
        return length([run for run in self.history.runs if run.decay != COPY])

    @property
    def profile(self) -> Profile:
        """The exact weight of every point of the trajectory in these tensors' averages."""
        return self.history.profile()


def _resting(clock: int, beta: float, history: History) -> Course:
    return Course(_AT_REST, clock, beta, history, 0, [], history)
