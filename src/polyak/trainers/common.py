"""What the trainers have in common: what is logged, what is checked, how a saved average is opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from polyak.errors import CheckpointError, ConfigError
from polyak.rules import Decay
from polyak.torch import EMA

_LOGGED = ("decay", "mean_age", "distance", "skipped")


def numbers(ema: EMA) -> dict[str, float]:
    """``ema/decay``, ``ema/mean_age``, ``ema/distance``, ``ema/skipped``; ``ema/short/decay`` for several."""
    return {
        f"ema/{key}": float(value)
        for key, value in ema.metrics().items()
        if key.rpartition("/")[2] in _LOGGED
    }


def check_evaluate(evaluate: str | None, tracks: Collection[str]) -> None:
    """Refuse to evaluate on what is not there.

    Raises:
        ConfigError: it is no track, nor "raw".
    """
    if evaluate is not None and evaluate != "raw" and evaluate not in tracks:
        raise ConfigError(f"evaluate={evaluate!r}: must be {', '.join(map(repr, tracks))}, 'raw' or None.")


def begun_from(state: Mapping[str, Any], model: nn.Module, options: Mapping[str, Any]) -> EMA:
    """An EMA over ``model`` with the schedules and settings of a state, and the state in it.

    Raises:
        CheckpointError: the state is malformed or does not match the model.
    """
    try:
        decays = {name: Decay.from_config(track["decay"]) for name, track in state["tracks"].items()}
        settings = {name: state[name] for name in ("every", "start", "seed")}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the state is not one of polyak.EMA: {error!r}.") from error
    ema = EMA(model, decays, **{**settings, **options})
    ema.load_state_dict(dict(state))
    return ema
