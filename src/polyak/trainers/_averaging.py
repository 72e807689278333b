"""What every ``WeightAveraging`` has, in any framework: an average, and whose weights it evaluates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar, Generic, ParamSpec, TypeAlias, TypeVar

from polyak._core.ema import BaseEMA
from polyak._core.save import raw_header, track_header
from polyak._core.track import named_decays
from polyak._files.header import Header
from polyak._files.source import Where
from polyak._foreign.note import write_note
from polyak.errors import ConfigError, PlanError
from polyak.schedules import Decay

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
EmaT = TypeVar("EmaT", bound=BaseEMA[Any, Any])
Decays: TypeAlias = float | Decay | Mapping[str, float | Decay]
Evaluate: TypeAlias = str | Sequence[str] | None
RAW = "raw"
_LOGGED = ("decay", "mean_age", "distance", "skipped")


class AnyAveraging(Generic[EmaT]):
    """The part of every ``WeightAveraging`` that depends neither on the trainer nor on the framework.

    Args:
        decay: β, a schedule, or several by name.
        evaluate: whose weights to evaluate; see ``whose``.
        options: of the framework's ``EMA``.
        known: the names of all such options.

    Raises:
        ConfigError: ``decay`` or ``evaluate`` is outside its rule.
        TypeError: an option is unknown.
    """

    _begins: ClassVar[str]  # when there is an average

    def __init__(
        self, decay: Decays, evaluate: Evaluate, options: Mapping[str, Any], known: Collection[str]
    ) -> None:
        if unknown := sorted(options.keys() - set(known)):
            raise TypeError(f"WeightAveraging has no argument {unknown[0]!r}.")
        self._evaluated = whose(evaluate, [*named_decays(decay)])
        self._decay = decay
        self._ema: EmaT | None = None

    @property
    def ema(self) -> EmaT:
        """The average.

        Raises:
            PlanError: it does not exist yet, because training has not begun.
        """
        if self._ema is None:
            raise PlanError(f"there is no average before {self._begins}.")
        return self._ema

    def _evaluating(self, weights: str | None = None) -> AbstractContextManager[object]:
        """The model holds these weights in this block; by default those evaluated first."""
        weights = weights or self._evaluated[0]
        return nullcontext() if weights == RAW else self.ema.average_parameters(weights)

    def _saved_track(self, track: str | None) -> str | None:
        """The track to save if none is named: the first that is evaluated."""
        return track or next((weights for weights in self._evaluated if weights != RAW), None)


def whose(evaluate: Evaluate, tracks: Sequence[str]) -> list[str]:
    """Whose weights are evaluated: tracks or "raw". The trainer's own metrics are those of the first.

    Args:
        evaluate: a track or "raw", or several of them; "both" is the first track and "raw", None the first
            track.
        tracks: there are.

    Raises:
        ConfigError: ``evaluate`` names something else, or one twice, or nothing.
    """
    if evaluate is None:
        chosen = [tracks[0]]
    elif isinstance(evaluate, str):
        chosen = [tracks[0], RAW] if evaluate == "both" and "both" not in tracks else [evaluate]
    else:
        chosen = [*evaluate]
    if not chosen or len({*chosen}) < len(chosen) or not {*chosen} <= {*tracks, RAW}:
        names = ", ".join(map(repr, tracks))
        raise ConfigError(f"evaluate={evaluate!r}: must be {names}, 'raw', a list of these, 'both' or None.")
    return chosen


def apart(weights: str, metrics: Mapping[str, V]) -> dict[str, V]:
    """Metrics of weights that are evaluated second or later: ``raw/val_loss``, ``ema=long/val_loss``."""
    group = RAW if weights == RAW else f"ema={weights}"
    return {f"{group}/{name}": value for name, value in metrics.items()}


def numbers(ema: BaseEMA[Any, Any], group: str = "ema") -> dict[str, float]:
    """``ema/decay``, ``ema/mean_age``, ``ema/distance``, ``ema/skipped``; ``ema/short/decay`` for several."""
    return {
        f"{group}/{key}": float(value)
        for key, value in ema.metrics().items()
        if key.rpartition("/")[2] in _LOGGED
    }


def say_beside(where: Where, ema: BaseEMA[Any, Any], track: str | None) -> None:
    """Write a note beside a checkpoint that a trainer wrote: whose weights these are.

    Args:
        where: the file, or the folder that holds it or its shards.
        ema: the average.
        track: whose weights it holds; the first track's if None, "raw" for the model's own.
    """
    write_note(where, header_of(ema, track))


def header_of(ema: BaseEMA[Any, Any], track: str | None) -> Header:
    """The header of a file with a track's weights; None is the first track, "raw" the model's own weights."""
    if track == RAW:
        return raw_header(ema.step, ema.run)
    return track_header(ema.tracks[track or next(iter(ema.tracks))], ema.step, ema.run)


def closing(live: ExitStack, run: Callable[P, R]) -> Callable[P, R]:
    """``run``, with ``live`` closed when it returns or raises."""

    def closed(*args: P.args, **kwargs: P.kwargs) -> R:
        with live:
            return run(*args, **kwargs)

    return closed
