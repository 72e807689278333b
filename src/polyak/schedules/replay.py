"""What another average of the same run would have been: its history with another decay in it."""

from __future__ import annotations

from polyak.errors import ConfigError
from polyak.schedules.decay import DecayLike, as_decay
from polyak.schedules.profile import COPY, Profile, Run


def replay(kept: Profile, decay: DecayLike, at: int, last: int | None = None) -> Profile:
    """The profile ``decay`` would have at step ``at``, as a track beside the kept one.

    It looks at the same points: an average updated on every tenth step is compared with one that would
    have been, not with one updated on every step. A track with β = 0 only ever copied the model, and
    stays a copy whatever the decay: its history cannot tell an update from a restart.

    Args:
        kept: the profile of a track at ``at`` or later.
        decay: the other schedule.
        at: training step to stand at.
        last: restart with a copy this many steps before ``at``; by default at the track's start.

    Returns:
        The profile, over the points of the trajectory up to ``at``.

    Raises:
        ConfigError: the decay counts samples or tokens and the track kept counts something else, the
            profile is a mixture, or ``last`` is not in 1 … ``at``.

    Examples:
        >>> kept = Profile.from_decay(0.99, 1000, every=10)
        >>> replay(kept, 0.999, at=500) == Profile.from_decay(0.999, 500, every=10)
        True
    """
    if len(kept.terms) != 1:
        raise ConfigError("replay: the profile kept is a mixture; give that of one track.")
    if last is not None:
        if not 1 <= last <= at:
            raise ConfigError(f"last={last}: must be a whole number of steps from 1 to {at}.")
        kept = kept.since(at - last)
    chosen, clock = as_decay(decay), 0
    runs: list[Run] = []
    for run in _until(kept.terms[0][1], at):
        if run.decay != COPY:
            advance = run.stride if chosen.unit == "steps" else run.advance
            if chosen.unit not in ("steps", run.decay.unit):
                raise ConfigError(
                    f"{chosen} counts {chosen.unit}, the averages kept count {run.decay.unit}: "
                    f"give it in steps or in {run.decay.unit}."
                )
            run = Run(chosen, clock, run.count, run.stride, advance)
            clock += run.count * advance
        runs.append(run)
    within = 1.0 if kept.within else 0.0  # how exact a merged history is, it is for its own decay only
    return Profile(((1.0, tuple(runs)),), within)


def _until(runs: tuple[Run, ...], at: int) -> list[Run]:
    kept: list[Run] = []
    begun = 0
    for run in runs:
        end = begun + run.count * run.stride
        if end <= at:
            kept.append(run)
        elif run.decay == COPY:  # a copy of the model up to its end is one up to any earlier step
            kept.append(run._replace(count=1, stride=at - begun))
        elif begun < at and (at - begun) // run.stride:
            kept.append(run._replace(count=(at - begun) // run.stride))
        begun = min(end, at)
    return kept
