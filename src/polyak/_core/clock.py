"""Where an EMA stands in time: steps counted, and those not acted on yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from polyak.errors import ConfigError
from polyak.schedules.decay import Unit, check_whole


class Clock(NamedTuple):
    """The counters of an EMA: plain numbers, since every update makes a new one.

    step: training steps so far.  waiting: steps since the last one acted on.
    steps, samples, tokens: the schedules' time since then; None for a unit in which no track counts.
    """

    step: int
    waiting: int
    steps: int | None
    samples: int | None
    tokens: int | None

    @classmethod
    def at(cls, step: int, units: Collection[Unit]) -> Clock:
        """All that came before ``step`` acted on."""
        return cls.of(step, 0, dict.fromkeys(units, 0))

    @classmethod
    def of(cls, step: int, waiting: int, elapsed: Mapping[str, int]) -> Clock:
        """From what ``elapsed`` returns."""
        return cls(step, waiting, elapsed.get("steps"), elapsed.get("samples"), elapsed.get("tokens"))

    @property
    def elapsed(self) -> dict[Unit, int]:
        """The schedules' time since the last step acted on, in each unit that some track counts in."""
        counts: dict[Unit, int | None] = {
            "steps": self.steps,
            "samples": self.samples,
            "tokens": self.tokens,
        }
        return {unit: count for unit, count in counts.items() if count is not None}

    def later(self, steps: int, samples: int | None, tokens: int | None, copying: bool) -> Clock:
        """The clock after so many; while ``copying`` the schedules' time stands still.

        Raises:
            ConfigError: a count is missing or not positive.
        """
        check_whole("steps", steps, 1)
        step, waiting, *elapsed = self
        if copying:
            return Clock(step + steps, waiting + steps, *elapsed)
        in_steps, in_samples, in_tokens = elapsed
        return Clock(
            step + steps,
            waiting + steps,
            None if in_steps is None else in_steps + steps,
            None if in_samples is None else in_samples + _counted("samples", samples),
            None if in_tokens is None else in_tokens + _counted("tokens", tokens),
        )

    def acted(self) -> Clock:
        """The same moment with nothing left to act on."""
        step, _, steps, samples, tokens = self
        # ``None and 0`` is None: a unit in which no track counts stays one.
        return Clock(step, 0, steps and 0, samples and 0, tokens and 0)


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
