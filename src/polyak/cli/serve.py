"""`polyak serve`."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated

import typer

from polyak.cli.console import say
from polyak.errors import ConfigError
from polyak.schedules import Constant, Decay, HalfLife, Uniform
from polyak.server import Server, start


@dataclass(frozen=True)
class Options:
    """The schedule; exactly one is given."""

    decay: float | None
    half_life: float | None
    uniform: bool

    def schedule(self) -> Decay:
        """The schedule.

        Raises:
            ConfigError: none or several were given.
        """
        if (self.decay is not None) + (self.half_life is not None) + self.uniform != 1:
            raise ConfigError("give one of --decay, --half-life and --uniform.")
        if self.uniform:
            return Uniform()
        return Constant(self.decay) if self.decay is not None else HalfLife(steps=self.half_life)


def serve(
    first: Annotated[str, typer.Argument(help="A checkpoint: names, shapes, the value before any push.")],
    folder: Annotated[Path, typer.Option(help="Folder of the versions; one that has some goes on.")],
    decay: Annotated[float | None, typer.Option(help="β per training step.")] = None,
    half_life: Annotated[float | None, typer.Option(help="Half-life in training steps.")] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="The mean of all pushes.")] = False,
    shards: Annotated[int, typer.Option(min=1, help="Processes that share the elements.")] = 1,
    name: Annotated[str, typer.Option(help="Of the average.")] = "average",
    step: Annotated[int, typer.Option(min=0, help="Training step of the checkpoint.")] = 0,
    max_staleness: Annotated[int, typer.Option(min=0, help="Refuse pushes more steps late.")] = 10_000,
    keep: Annotated[int, typer.Option(min=1, help="Versions that stay on disk.")] = 10,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster to join.", show_default="a new one")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Its token.", show_default="FOLDER/token, made if missing")
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two lines of figures.")] = 60.0,
) -> None:
    """Serve one average that many workers push to."""
    schedule = Options(decay, half_life, uniform).schedule()
    token = None if token_file is None else token_file.read_text().strip()
    stopped: SimpleQueue[None] = SimpleQueue()
    _on_signals(stopped)
    server = start(
        first,
        schedule,
        folder=folder,
        shards=shards,
        name=name,
        step=step,
        max_staleness=max_staleness,
        keep=keep,
        address=address,
        token=token,
    )
    _on_signals(stopped)  # Ray has put its own in their place
    with server:
        say(f"address     {server.address}", f"token file  {token_file or folder / 'token'}")
        say(f"folder      {folder}", f"name        {name}", f"schedule    {schedule}", "Ctrl-C stops it.")
        _report(server, every, stopped)
    last = server.stop()
    say(f"wrote {folder / f'{name}.safetensors'}: version {last.version} at step {last.step}")


def _on_signals(stopped: SimpleQueue[None]) -> None:
    """A signal puts something into the queue, whose ``put`` may interrupt its ``get``; an Event's may not."""

    def stop(*_: object) -> None:
        stopped.put(None)

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)


def _report(server: Server, every: float, stopped: SimpleQueue[None]) -> None:
    """A line of figures from time to time, until a signal comes."""
    client, before = server.client(), 0.0
    while True:
        with suppress(Empty):
            stopped.get(timeout=every)
            return
        figures = client.metrics()
        say(_line(figures, figures["version"] - before))
        before = figures["version"]


def _line(figures: Mapping[str, float], pushes: float) -> str:
    refused = figures["too_stale"] + figures["too_far_ahead"]
    return (
        f"{datetime.now():%H:%M:%S}  {pushes:,.0f} pushes, {figures['version']:,.0f} in all, "
        f"{figures['bytes'] / 1e6:,.1f} MB; step {figures['step']:,.0f}; {figures['workers']:.0f} workers; "
        f"staleness {figures['staleness_median']:.0f} (median), {figures['staleness_90_percent']:.0f} (90 %),"
        f" {figures['staleness_largest']:.0f} (largest); {refused:.0f} refused"
    )
