"""The benchmark: build the model and the contenders, measure them, derive the advice."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch
from torch import nn

from polyak.bench import shapes
from polyak.bench.contender import decays, engines, ours
from polyak.bench.cost import STORED, Advice, Facts, moved, moved_separately, recommend
from polyak.bench.measure import Measured, Tick, measure
from polyak.bench.options import Options
from polyak.errors import ConfigError


@dataclass(frozen=True)
class Report:
    """The figures of one benchmark.

    tensors: number that are averaged.  params: their dtypes.  dtype: of the averages.
    moved: bytes per parameter that one update must move; moved_separately: with an EMA for each track.
    left_out: engines that cannot run here, and why.
    """

    model: str
    tensors: int
    params: str
    dtype: str
    tracks: int
    threads: int
    device: str
    moved: int
    moved_separately: int
    measured: Measured
    left_out: dict[str, str]
    advice: Advice


def run(options: Options, tick: Tick = lambda done, of: None) -> Report:
    """Measure polyak's engines on a model.

    Args:
        options: the benchmark.
        tick: called with the number of rounds done and the total.

    Returns:
        The figures and the advice.

    Raises:
        ConfigError: the model cannot be built, or the chosen engine or device cannot run here.
        PlanError: the model has nothing to average.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    model, step = shapes.load(options.model)
    model.to(device, None if options.params is None else getattr(torch, options.params))
    free, betas = _free(device), decays(options.tracks)
    if options.engine is None:
        contenders, left_out = engines(model, betas, options.dtype, device.type)
    else:
        contenders, left_out = {options.engine: ours(model, betas, options.dtype, options.engine)}, {}
    measured = measure(model, contenders, betas, options.dtype, options.rounds, step, tick)
    trained = [p for p in model.parameters() if p.requires_grad]
    facts = _facts(measured, trained, options, free, device)
    return Report(
        model=options.model,
        tensors=len(trained),
        params=_dtypes(trained),
        dtype=options.dtype,
        tracks=options.tracks,
        threads=torch.get_num_threads(),
        device=str(device),
        moved=moved(facts.live, STORED[options.dtype], options.tracks),
        moved_separately=moved_separately(facts.live, STORED[options.dtype], options.tracks),
        measured=measured,
        left_out=left_out,
        advice=recommend(facts),
    )


def _facts(
    measured: Measured, trained: list[nn.Parameter], options: Options, free: int | None, device: torch.device
) -> Facts:
    figures = next(iter(measured.figures.values()))
    live = sum(p.numel() * p.itemsize for p in trained) / measured.parameters
    return Facts(
        parameters=measured.parameters,
        live=round(live),
        tracks=options.tracks,
        dtype=options.dtype,
        update=figures.after_step or figures.update,
        step=measured.step,
        bandwidth=measured.bandwidth,
        free=free,
        device=device.type,
        engine=figures.engine,
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name!r} cannot be used here: {shapes.one_line(error)}") from error
    return device


def _free(device: torch.device) -> int | None:
    """Bytes of free memory on the device; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform != "linux":
        return None
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _dtypes(trained: list[nn.Parameter]) -> str:
    names = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in trained)
    return ", ".join(names)
