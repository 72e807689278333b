"""polyak as a contender: its averages as three functions (update, averages, swap), with a named engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import polyak
from polyak.bench.cost import first_engine
from polyak.errors import ConfigError

Named: TypeAlias = dict[str, Tensor]
# By device, the fastest first.
ENGINES = {"cpu": ("native", "blocked", "foreach"), "cuda": ("triton", "foreach")}


class Contender(NamedTuple):
    """Averages of one model, ready to be updated.

    update: one update of all of them.  averages: for each track the averages by parameter name.
    swap: puts the average into the live model for a block; None for libraries that evaluate a second model.
    engine: the engine that runs, and why not a faster one; empty for other libraries.
    """

    update: Callable[[], object]
    averages: Callable[[], list[Named]]
    swap: Callable[[], AbstractContextManager[object]] | None = None
    engine: str = ""


def decays(tracks: int) -> list[float]:
    """A decay for each track: 0.999, and each further one twice as slow."""
    return [1 - 1e-3 / 2**k for k in range(tracks)]


def ours(
    model: nn.Module, betas: Sequence[float], store: str, engine: str = "auto", policy: str = "skip"
) -> Contender:
    """polyak: one EMA for all tracks; ``store`` is one of ``cost.STORED``, ``policy`` is ``on_nonfinite``."""
    words: dict[str, Any] = {"engine": engine, "on_nonfinite": policy}
    if store == "compensated":
        words["compensated"] = True
    else:
        words["dtype"] = store if store == "split" else getattr(torch, store)
    ema = polyak.EMA(model, {str(k): beta for k, beta in enumerate(betas)}, **words)
    for track in ema.tracks.values():
        track.trusted = True  # swapped in to be timed, not to be evaluated

    def averages() -> list[Named]:
        return [{name: track.value(name) for name in track.tensors} for track in ema.tracks.values()]

    return Contender(ema.update, averages, ema.average_parameters, str(ema.metrics()["engine"]))


def engines(
    model: nn.Module, betas: Sequence[float], store: str, device: str
) -> tuple[dict[str, Contender], dict[str, str]]:
    """The engine that polyak picks, under "auto", and the others that run on this device.

    Returns:
        Contenders by name; and for each engine that cannot run, the reason.
    """
    auto = ours(model, betas, store)
    found, left_out = {"auto": auto}, dict[str, str]()
    for name in ENGINES.get(device, ("foreach",)):
        if name == first_engine(auto.engine):
            continue
        try:
            made = ours(model, betas, store, name)
        except ConfigError as error:
            left_out[name] = str(error)
            continue
        if first_engine(made.engine) == name:
            found[name] = made
        else:
            left_out[name] = f"it does not take these tensors: {made.engine} runs instead"
    return found, left_out
