"""The counters of an EMA: training steps, and those since the last update."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

from polyak.errors import ConfigError
from polyak.schedules.decay import Unit, check_integer

Start: TypeAlias = int | str  # training steps, or a share of the run's, "5%"
_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")


class Clock(NamedTuple):
    """The counters of an EMA: plain numbers, since every update makes a new one.

    step: training steps so far.  waiting: steps since the last update of the averages.
    steps, samples, tokens: the schedules' time since then; None for a unit that no track uses.
    """

    step: int
    waiting: int
    steps: int | None
    samples: int | None
    tokens: int | None

    @classmethod
    def at(cls, step: int, units: Collection[Unit]) -> Clock:
        """The clock of averages updated at ``step``."""
        return cls.of(step, 0, dict.fromkeys(units, 0))

    @classmethod
    def of(cls, step: int, waiting: int, elapsed: Mapping[str, int]) -> Clock:
        """The inverse of ``elapsed``."""
        return cls(step, waiting, elapsed.get("steps"), elapsed.get("samples"), elapsed.get("tokens"))

    @property
    def elapsed(self) -> dict[Unit, int]:
        """The schedules' time since the last update of the averages, in each unit that a track uses."""
        counts: dict[Unit, int | None] = {
            "steps": self.steps,
            "samples": self.samples,
            "tokens": self.tokens,
        }
        return {unit: count for unit, count in counts.items() if count is not None}

    def later(self, steps: int, samples: int | None, tokens: int | None, copying: bool) -> Clock:
        """The clock this much later; while ``copying`` the schedules' time does not advance.

        Raises:
            ConfigError: a count is missing or not positive.
        """
        if type(steps) is not int or steps < 1:  # inline, since a call would cost more than the rest
            check_integer("steps", steps, 1)
        step, waiting, in_steps, in_samples, in_tokens = self
        if not copying:
            if in_steps is not None:
                in_steps += steps
            if in_samples is not None:
                in_samples += _counted("samples", samples)
            if in_tokens is not None:
                in_tokens += _counted("tokens", tokens)
        return Clock(step + steps, waiting + steps, in_steps, in_samples, in_tokens)

    def acted(self) -> Clock:
        """The same moment, with the averages up to date."""
        step, _, steps, samples, tokens = self
        # ``None and 0`` is None: a unit that no track uses stays None.
        return Clock(step, 0, steps and 0, samples and 0, tokens and 0)


def _counted(unit: str, count: int | None) -> int:
    if count is None:
        raise ConfigError(
            f"a decay counts {unit}: pass their number since the last call, ema.update({unit}=…)."
        )
    check_integer(unit, count, 1)
    return count


def check_pace(every: int, start: Start) -> int:
    """Check ``every`` and ``start``; returns ``start``.

    Raises:
        ConfigError: ``every`` below 1, ``start`` below 0, or a share of a run whose length is not known.
    """
    check_integer("every", every, 1)
    return in_steps(start, None)


def in_steps(start: Start, run: float | None) -> int:
    """``start`` in training steps; a share like "5%" refers to the length of the run.

    Raises:
        ConfigError: it is neither a number of steps nor a share, or a share of a run of unknown length.
    """
    if not isinstance(start, str):
        check_integer("start", start, 0)
        return start
    share = _SHARE.fullmatch(start)
    if share is None or float(share[1]) >= 100:
        raise ConfigError(f'start={start!r}: must be a number of steps, or a share below 100 % such as "5%".')
    if run is None or not math.isfinite(run):
        raise ConfigError(
            f"start={start!r}: the length of the run is unknown here. Give a number of steps, "
            f"start=int({float(share[1]) / 100:g} * steps). Trainers that know the number of steps of a run "
            "accept a share."
        )
    return round(float(share[1]) / 100 * run)
