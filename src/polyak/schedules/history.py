"""The history of an average: the runs of updates from which its profile is computed."""

from __future__ import annotations

from collections.abc import Sequence

from polyak.schedules.decay import Decay
from polyak.schedules.profile import Profile
from polyak.schedules.runs import COPY, Run, coarsened

_GROUPS = 1 << 9  # share of the weight that a merged run may contain, if its updates differ in size
_RUNS = 8 * _GROUPS  # that a history may grow to; merging leaves four for each group at most


class History:
    """The growing list of an average's runs; an update like the previous one only increments a count.

    count: the updates of the last run.

    Updates of varying size (tokens, accumulated batches) are a run each. Beyond some thousand runs the old
    ones are merged (see ``coarsened``), and the profile states its accuracy.
    """

    def __init__(self, runs: Sequence[Run] = (), within: float = 0.0) -> None:
        self._closed, self._within = _bounded(list(runs[:-1]), within)
        self._mine = len(self._closed)  # a later history may have appended to the list that both share
        self._last = runs[-1] if runs else None  # but for its count
        self.count = runs[-1].count if runs else 0

    def record(self, decay: Decay, clock: int, stride: int, advance: int) -> None:
        """One update: ``decay`` from ``clock`` over ``advance`` of its units, ``stride`` training steps."""
        vars(self).update(vars(self.after(decay, clock, stride, advance)))

    def restart(self, step: int) -> None:
        """A copy of the parameters at ``step``, which discards the history."""
        vars(self).update(vars(self.copied(step)))

    def after(self, decay: Decay, clock: int, stride: int, advance: int) -> History:
        """The history after such an update, which continues the last run or starts a new one."""
        if self._last is not None:
            d, c, _, s, a = self._last
            if d is decay and s == stride and a == advance and c + self.count * a == clock:
                return self.longer(1)
        later = History([Run(decay, clock, 1, stride, advance)], self._within)
        if self._last is not None:
            del self._closed[self._mine :]
            self._closed.append(self._last._replace(count=self.count))
            later._closed, later._within = _bounded(self._closed, self._within)
            later._mine = len(later._closed)
        return later

    def longer(self, updates: int) -> History:
        """The history with this number of further updates in its last run."""
        later = object.__new__(History)
        vars(later).update(vars(self))
        later.count += updates
        return later

    @staticmethod
    def copied(step: int) -> History:
        """The history of a copy made at ``step``."""
        return History([Run(COPY, 0, 1, step, 1)])

    @property
    def runs(self) -> tuple[Run, ...]:
        if self._last is None:
            return ()
        return (*self._closed[: self._mine], self._last._replace(count=self.count))

    def profile(self) -> Profile:
        return Profile(((1.0, self.runs),), self._within)


def _bounded(runs: list[Run], within: float) -> tuple[list[Run], float]:
    if len(runs) > _RUNS:
        merged = coarsened(runs, _GROUPS)
        if len(merged) < len(runs):
            return merged, 1 / _GROUPS
    return runs, within
