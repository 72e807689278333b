"""The common base of every ``WeightAveraging``: an average, and the weights to evaluate."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, ParamSpec, TypeAlias, TypeVar, cast

from polyak._core.ema import BaseEMA
from polyak._core.save import raw_header, track_header
from polyak._core.state_dict import EMAState
from polyak._core.track import Decays
from polyak._files.header import Header
from polyak._files.source import Where
from polyak._foreign.own import write_note
from polyak.errors import ConfigError, PlanError
from polyak.report.environment import environment
from polyak.report.training import report_training
from polyak.trainers._evaluations import FOLLOWING, Evaluate, evaluable, evaluations

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
EmaT = TypeVar("EmaT", bound=BaseEMA[Any, Any])
OptionsT = TypeVar("OptionsT", bound=Mapping[str, Any])
Folder: TypeAlias = str | os.PathLike[str] | None
_REFUSED = re.compile(r"[^\w./ :-]")  # by MLflow
_LOGGED = ("decay", "mean_age", "initial_weight", "distance", "skipped")


class AnyAveraging(Generic[EmaT]):
    """The part of every ``WeightAveraging`` that depends neither on the trainer nor on the framework.

    Args:
        decay: β, a schedule, several by name, or an ``Adaptive``.
        evaluate: see ``evaluations``.
        options: of the framework's ``EMA``.
        known: the names of all such options.
        report: write ``report.html`` when training ends: True for the trainer's own folder, or a folder.

    Raises:
        ConfigError: ``decay`` or ``evaluate`` is invalid, or ``report`` True where the trainer has no folder.
        TypeError: an option is unknown.
    """

    _begins: ClassVar[str]  # when there is an average
    _has_folder: ClassVar[bool] = False  # whether the trainer writes its logs into a folder of its own

    def __init__(
        self,
        decay: Decays,
        evaluate: Evaluate,
        options: Mapping[str, Any],
        known: Collection[str],
        report: bool | Folder = None,
    ) -> None:
        if report is True and not self._has_folder:
            raise ConfigError(
                "report=True: this trainer has no folder of its own. Give the one with its logs, "
                'report="runs/a".'
            )
        if unknown := sorted(options.keys() - set(known)):
            raise TypeError(f"WeightAveraging has no argument {unknown[0]!r}.")
        self._evaluations = evaluations(evaluate, evaluable(decay))
        self._plain, *self._others = (
            self._evaluations
        )  # the weights whose metrics keep their names, and the others
        self._decay, self._reports = decay, bool(report)
        self._logs = None if report is None or isinstance(report, bool) else Path(report)
        self._ema: EmaT | None = None

    @property
    def ema(self) -> EmaT:
        """The average.

        Raises:
            PlanError: it does not exist before training begins.
        """
        if self._ema is None:
            raise PlanError(f"there is no average before {self._begins}.")
        return self._ema

    def _with_weights(self, weights: str) -> AbstractContextManager[object]:
        """A block in which the model holds these weights."""
        return nullcontext() if weights == "raw" else self.ema.average_parameters(self._track_of(weights))

    def _track_of(self, weights: str) -> str:
        """The track to which these weights refer now."""
        return self.ema.following if weights == FOLLOWING else weights

    def _prefixed(self, weights: str, metrics: Mapping[str, V]) -> dict[str, V]:
        """Metrics of these weights, with their prefix."""
        return {f"{self._evaluations[weights]}{name}": value for name, value in metrics.items()}

    def _saved_track(self, track: str | None) -> str:
        """The track to save by default: the first that is evaluated, otherwise the followed one."""
        weights = track or next(one for one in [*self._evaluations, FOLLOWING] if one != "raw")
        return self._track_of(weights)

    def _report(self, folder: Path | None = None, writes: bool = True) -> None:
        """Write the report of this run, if wanted; of a sharded average every process calls this.

        Args:
            folder: the trainer's own, with its logs, if it has one.
            writes: whether this process writes files.
        """
        folder = folder or self._logs
        if not self._reports or self._ema is None or folder is None:
            return
        write_report(folder, {"": self._ema}, writes)


def write_report(folder: Path, emas: Mapping[str, BaseEMA[Any, Any]], writes: bool) -> None:
    """Report averages by name; every process calls this, if sharded, and the one that ``writes`` writes."""
    averages, facts = for_report(emas)
    if writes:
        report_training(folder, averages, facts)


def for_report(emas: Mapping[str, BaseEMA[Any, Any]]) -> tuple[list[Header], dict[str, str]]:
    """What a report says of averages in memory and of the run; every process calls this, if sharded.

    Args:
        emas: by the names that tell several apart in the report.
    """
    headers: list[Header] = []
    engines, skipped = dict[str, None](), list[str]()
    for given, ema in emas.items():
        name = given if len(emas) > 1 else ""
        metrics = ema.metrics()
        engines[metrics["engine"]] = None
        tensors: Mapping[str, int] = metrics["skipped_tensors"]
        counts = "".join(f", {tensor} ({n})" for tensor, n in tensors.items())
        skipped.append(f"{name and f'{name}: '}{metrics['skipped']}{counts}")
        for track in ema.tracks:
            header = header_of(ema, track)
            headers.append(replace(header, track=f"{name}/{track}" if name else track))
    facts = environment(sys.modules, engine="; ".join(engines))
    return headers, facts | {"skipped updates": "; ".join(skipped)}


def numbers(ema: BaseEMA[Any, Any], group: str = "ema") -> dict[str, float]:
    """``ema/decay``, ``ema/initial_weight`` and so on; ``ema/short/decay`` with several tracks.

    Patterns of a ``ByName`` have ``_`` for what loggers refuse in a name: ``ema/_.attn._/decay``.
    """
    return {
        f"{group}/{_REFUSED.sub('_', key)}": float(value)
        for key, value in ema.metrics().items()
        if key.rpartition("/")[2] in _LOGGED
    }


def say_beside(where: Where, ema: BaseEMA[Any, Any], track: str | None) -> None:
    """Write a note beside a trainer's checkpoint that describes its weights.

    Args:
        where: the file, or the folder of the file or its shards.
        ema: the average.
        track: in the file; by default the followed one, "raw" for the model's own weights.
    """
    write_note(where, header_of(ema, track))


def header_of(ema: BaseEMA[Any, Any], track: str | None) -> Header:
    """The header of a file with a track's weights; None is the followed, "raw" the model's own weights."""
    if track == "raw":
        return raw_header(ema.step, ema.run)
    return track_header(ema.tracks[track or ema.following], ema.step, ema.run)


def closing(live: ExitStack, run: Callable[P, R]) -> Callable[P, R]:
    """``run``, with ``live`` closed when it returns or raises."""

    def closed(*args: P.args, **kwargs: P.kwargs) -> R:
        with live:
            return run(*args, **kwargs)

    return closed


def start_in(state: Mapping[str, Any]) -> int:
    """The step at which the average in a state began.

    Raises:
        CheckpointError: the state is malformed.
    """
    return EMAState[Any].from_dict(state).settings["start"]


def arguments_in(state: Mapping[str, Any], options: OptionsT) -> tuple[Decays, OptionsT]:
    """A state's decays by track, or its ``Adaptive``, and its options for ``EMA``; ``options`` override.

    Raises:
        CheckpointError: the state is malformed.
    """
    theirs = EMAState[Any].from_dict(state)
    decays = {name: track.decay() for name, track in theirs.tracks.items()}
    rule, _ = theirs.observed or (None, None)
    return rule or decays, cast(OptionsT, {**theirs.settings, **options})
