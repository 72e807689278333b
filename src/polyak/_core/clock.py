"""Where an EMA stands in time: steps counted, and those not acted on yet."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from polyak.errors import ConfigError
from polyak.schedules.decay import Unit, check_whole


class Clock(NamedTuple):
    """The counters of an EMA.

    step: training steps so far.  waiting: steps since the last one acted on.  elapsed: the same in each unit.
    """

    step: int
    waiting: int
    elapsed: dict[Unit, int]

    @classmethod
    def at(cls, step: int, units: Collection[Unit]) -> Clock:
        """All that came before ``step`` acted on."""
        return cls(step, 0, dict.fromkeys(units, 0))

    def later(self, steps: int, samples: int | None, tokens: int | None, copying: bool) -> Clock:
        """The clock after so many; while ``copying`` the schedules' time stands still.

        Raises:
            ConfigError: a count is missing or not positive.
        """
        check_whole("steps", steps, 1)
        elapsed: dict[Unit, int] = self.elapsed
        if not copying:
            others = {"samples": samples, "tokens": tokens}
            elapsed = {
                unit: n + (steps if unit == "steps" else _counted(unit, others[unit]))
                for unit, n in elapsed.items()
            }
        return Clock(self.step + steps, self.waiting + steps, elapsed)


def _counted(unit: str, count: int | None) -> int:
    if count is None:
        raise ConfigError(f"a decay counts {unit}: say how many since the last call, ema.update({unit}=…).")
    check_whole(unit, count, 1)
    return count


def check_pace(every: int, start: int) -> None:
    """Refuse what is no number of steps.

    Raises:
        ConfigError: ``every`` below 1, or ``start`` below 0.
    """
    check_whole("every", every, 1)
    check_whole("start", start, 0)
