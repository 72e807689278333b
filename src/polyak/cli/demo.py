"""`polyak demo`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from polyak.cli.extras import needs
from polyak.demo.options import FRAMEWORKS, Options


def demo(
    data: Annotated[
        str, typer.Option(help="auto, fashion-mnist, cifar10 or digits. Only a named one is fetched.")
    ] = "auto",
    root: Annotated[Path | None, typer.Option(help="Folder of the image files; downloads go there.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 10,
    decay: Annotated[float, typer.Option(help="β: the part of the average that one step keeps.")] = 0.9998,
    warmup: Annotated[bool, typer.Option(help="Let the decay grow to β from 0.")] = True,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order of the images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; for Paddle gpu.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="a new one in runs/")
    ] = None,
    framework: Annotated[str, typer.Option(help="torch or paddle; auto takes the first installed.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a small network on real images, raw weights against their average."""
    options = Options(data, root, epochs, decay, warmup, seed, device, out, framework)
    with needs(FRAMEWORKS[options.chosen], "torch", "pooch", "sklearn"):
        from polyak.demo import screen
        from polyak.demo.run import run

        console = Console(quiet=as_json)
        result = run(options, console)
    if as_json:
        print(json.dumps({"folder": str(result.folder), **asdict(result.summary)}))
    console.print(screen.table(result.summary))
    console.print(screen.times(result.summary), highlight=False, soft_wrap=True)
    console.print(
        f"wrote {result.folder / 'metrics.jsonl'} and average.safetensors", highlight=False, soft_wrap=True
    )
    if result.interrupted:
        raise typer.Exit(130)
