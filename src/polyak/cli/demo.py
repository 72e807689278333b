"""`polyak demo`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyak.cli.console import ascii_only, progress, say, say_table, width
from polyak.cli.extras import needs
from polyak.cli.options import Json
from polyak.demo.options import FRAMEWORKS, Data, Framework, Options, Rate


def demo(
    data: Annotated[
        Data,
        typer.Option(metavar="DATA", help="fashion-mnist, cifar10, digits; auto downloads nothing."),
    ] = "auto",
    root: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of the image files; downloads go there."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    lr: Annotated[
        Rate, typer.Option(metavar="RATE", help="constant: 1e-3; cosine: falls to 1e-4.")
    ] = "constant",
    decay: Annotated[float, typer.Option(help="β of the average.")] = 0.9998,
    warmup: Annotated[bool, typer.Option(help="Let the decay grow to β from 0.")] = True,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the order of the images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; for Paddle gpu.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="a new one in runs/")
    ] = None,
    framework: Annotated[Framework, typer.Option(help="auto takes the first installed.")] = "auto",
    score: Annotated[
        Path | None, typer.Option(help="Train nothing: print the test loss of this file's weights.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a small network on real images, beside its average."""
    options = Options(data, root, epochs, lr, decay, warmup, seed, device, out, framework)
    with needs(FRAMEWORKS[options.chosen], "torch", "pooch", "sklearn", "matplotlib"):
        from polyak.demo import run, screen
        from polyak.report.epochs import drawing

        if score is not None:
            print(run.score(options, score))
            return
        with progress("training", "count") as tick:
            result = run.run(options, _discard if as_json else say, tick)
    if as_json:
        print(json.dumps({"folder": str(result.folder), **asdict(result.summary)}))
    else:
        epochs_done = screen.counted(result.summary.epochs, "epoch")
        title = f"after {epochs_done}, {result.steps}/{result.total} steps"
        say_table(("", "raw", "average"), screen.rows(result.summary), title)
        say(*screen.gain(result.summary, lr), screen.cost(result.summary))
        if result.summary.epochs:
            raw, average = result.curves["accuracy"]
            say("", *drawing(raw, average, min(width(), 100), ascii_only=ascii_only()).splitlines())
        say("", f"wrote {result.folder}: {', '.join(result.files)}")
        say(f"open {result.folder / 'report.html'} in a browser to see all of it", "Next:")
        say(*(f"  {command}" for command in screen.next_commands(options, result.folder)))
    if result.interrupted:
        raise typer.Exit(130)


def _discard(line: str) -> None:
    """Show nothing: with --json the object is all that is printed."""
