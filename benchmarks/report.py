"""What the benchmarks of updates share: options, contenders, and a dated table in results/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from polyak.bench.contender import Contender, decays, ours
from polyak.bench.measure import Measured, measure
from polyak.bench.shapes import MODELS, Workload
from polyak.errors import PolyakError
from tests.shims import torchvision_without_ops

NAMES = {"LeNet": "lenet", "750 small": "many_small", "ResNet-50": "resnet50", "ViT-B": "vit_b"}
Make = Callable[[nn.Module, Sequence[float], str], Contender]


def polyak(engine: str = "auto", policy: str = "skip") -> Make:
    """polyak with one engine, which must be the one that runs."""

    def make(model: nn.Module, betas: Sequence[float], store: str) -> Contender:
        made = ours(model, betas, store, engine, policy)
        if engine != "auto" and not made.engine.startswith(engine):
            raise SystemExit(f"asked for {engine}, got {made.engine}")
        return made

    return make


def peer(name: str) -> Make:
    """Another library, on torch builds too that its torchvision does not match."""

    def make(model: nn.Module, betas: Sequence[float], store: str) -> Contender:
        torchvision_without_ops()
        return peers.theirs(name, model, betas, store)

    return make


def run(
    model: str,
    makers: Mapping[str, Make],
    options: argparse.Namespace,
    *,
    params: str = "float32",
    store: str = "float32",
    tracks: int = 1,
    work: Workload | None = None,
) -> Measured:
    """Measure those that can take part; who cannot is said on stderr.

    With ``work``, which ``model`` names then, also in training.
    """
    net = (work or MODELS[model]()).model.to(options.device, getattr(torch, params))
    betas, contenders = decays(tracks), {}
    for name, make in makers.items():
        try:
            contenders[name] = make(net, betas, store)
        except PolyakError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
    found = measure(net, contenders, betas, store, options.rounds, work and work.step)
    for name, figures in found.figures.items():
        print(f"{model}, {params} into {store}, {tracks} track(s), {name}: {figures}", file=sys.stderr)
    return found


def check(found: Measured) -> Measured:
    """Refuse figures of averages that are not what they should be."""
    wrong = {name: one.wrong for name, one in found.figures.items() if one.wrong}
    if wrong:
        raise SystemExit(f"not the same average: {wrong}")
    return found


def arguments(
    doc: str | None, rounds: int, more: Mapping[str, str] = MappingProxyType({})
) -> argparse.Namespace:
    """The options that every benchmark has, and more of its own, by their help; threads are set."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="number of rounds; figures are medians")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    for name, meaning in more.items():
        parser.add_argument(name, help=meaning)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def machine(options: argparse.Namespace) -> str:
    """Where the figures are from."""
    if options.device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(options.device)}, torch {torch.__version__}"
    return f"{_processor()}, {options.threads} thread(s), torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def table(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """A Markdown table: a column for each head, a row for each name."""
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    return [*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())]


def number(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "—" if value is None else f"{value * scale:,.{digits}f}"


def write(name: str, title: str, lines: Sequence[str], raw: Any, options: argparse.Namespace) -> None:
    """Print the table, and write it and all figures with machine and date."""
    text = "\n".join([f"{title} {machine(options)}, {options.rounds} rounds, {date.today()}.", "", *lines])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{name}-{date.today()}"
    stem.with_suffix(".md").write_text(text + "\n")
    about = {"date": str(date.today()), "machine": machine(options), "rounds": options.rounds}
    stem.with_suffix(".json").write_text(
        json.dumps(about | {"figures": raw}, indent=1, default=asdict) + "\n"
    )
