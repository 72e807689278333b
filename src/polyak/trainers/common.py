"""What the trainers have in common: what is logged, what is checked, how a saved average is opened."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from polyak._core.save import raw_header, track_header
from polyak._files.header import Header
from polyak._files.source import Where
from polyak._foreign.note import write_note
from polyak.errors import CheckpointError, ConfigError
from polyak.schedules import Decay
from polyak.torch import EMA

_LOGGED = ("decay", "mean_age", "distance", "skipped")


def numbers(ema: EMA, group: str = "ema") -> dict[str, float]:
    """``ema/decay``, ``ema/mean_age``, ``ema/distance``, ``ema/skipped``; ``ema/short/decay`` for several."""
    return {
        f"{group}/{key}": float(value)
        for key, value in ema.metrics().items()
        if key.rpartition("/")[2] in _LOGGED
    }


def say_beside(where: Where, ema: EMA, track: str | None) -> None:
    """Leave a note beside a checkpoint that a trainer wrote: whose weights these are.

    Args:
        where: the file, or the folder that holds it or its shards.
        ema: the average.
        track: whose weights it holds; the first track's if None, "raw" for the model's own.
    """
    write_note(where, header_of(ema, track))


def header_of(ema: EMA, track: str | None) -> Header:
    """What a file of a track's weights says of itself; None is the first track, "raw" the model's own."""
    if track == "raw":
        return raw_header(ema.step, ema.run)
    return track_header(ema.tracks[track or next(iter(ema.tracks))], ema.step, ema.run)


def check_evaluate(evaluate: str | None, tracks: Collection[str]) -> None:
    """Refuse to evaluate on what is not there.

    Raises:
        ConfigError: it is no track, nor "raw".
    """
    if evaluate is not None and evaluate != "raw" and evaluate not in tracks:
        raise ConfigError(f"evaluate={evaluate!r}: must be {', '.join(map(repr, tracks))}, 'raw' or None.")


def check_not_sharded(distributed_type: str) -> None:
    """Refuse what Accelerate will only shard later, or so that no parameter shows it.

    Raises:
        ConfigError: it is FSDP, DeepSpeed or Megatron.
    """
    if distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError(
            f"accelerator.distributed_type={distributed_type} shards the model: the average needs it whole "
            "in each process. Use DDP or a single device."
        )


def closing(live: ExitStack, run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, with ``live`` closed when it returns or raises."""

    def closed(*args: Any, **kwargs: Any) -> Any:
        with live:
            return run(*args, **kwargs)

    return closed


def asked_of(state: Mapping[str, Any]) -> tuple[dict[str, Decay], dict[str, Any]]:
    """The schedules of a state, by track, and the other arguments of ``polyak.EMA`` that it holds.

    Raises:
        CheckpointError: the state is malformed.
    """
    try:
        decays = {name: Decay.from_config(track["decay"]) for name, track in state["tracks"].items()}
        return decays, {name: state[name] for name in ("every", "start", "seed")}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the state is not one of polyak.EMA: {error!r}.") from error


def begun_from(state: Mapping[str, Any], model: nn.Module, options: Mapping[str, Any]) -> EMA:
    """An EMA over ``model`` with the schedules and settings of a state, and the state in it.

    Raises:
        CheckpointError: the state is malformed or does not match the model.
    """
    decays, settings = asked_of(state)
    ema = EMA(model, decays, **{**settings, **options})
    ema.load_state_dict(dict(state))
    return ema
