"""`polyak synthesize`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from polyak.archive.synthesis import synthesizable
from polyak.archive.synthesis import synthesize as make
from polyak.cli.printing import say
from polyak.cli.progress import progress
from polyak.errors import ConfigError
from polyak.schedules import Anneal, Constant, Decay, HalfLife, Power


@dataclass(frozen=True)
class Options:
    """Which average is asked for; exactly one of the four is given."""

    half_life: float | None
    decay: float | None
    sigma_rel: float | None
    last: int | None
    shape: str

    def target(self) -> Decay:
        """The decay that was asked for.

        Raises:
            ConfigError: none or several were.
        """
        asked = [self.half_life, self.decay, self.sigma_rel, self.last]
        if sum(value is not None for value in asked) != 1:
            raise ConfigError("give exactly one of --half-life, --decay, --sigma-rel and --last.")
        if self.half_life is not None:
            return HalfLife(steps=self.half_life)
        if self.decay is not None:
            return Constant(self.decay)
        if self.sigma_rel is not None:
            return Power(sigma_rel=self.sigma_rel)
        if self.shape not in ("linear", "cosine"):
            raise ConfigError(f'--shape {self.shape}: must be "linear" or "cosine".')
        return Anneal(self.last or 0, "linear" if self.shape == "linear" else "cosine")


def synthesize(
    archive: Annotated[Path, typer.Argument(help="Folder of snapshots that polyak.Archive wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; without, list what is reachable.")
    ] = None,
    half_life: Annotated[float | None, typer.Option(help="In training steps.")] = None,
    decay: Annotated[float | None, typer.Option(help="β of a plain average.")] = None,
    sigma_rel: Annotated[float | None, typer.Option(help="Width of a power-function average.")] = None,
    last: Annotated[int | None, typer.Option(help="Over the last so many steps: their mean.")] = None,
    shape: Annotated[
        str, typer.Option(help="With --last: linear (the mean), or cosine, as a learning rate annealed.")
    ] = "linear",
    at: Annotated[
        int | None, typer.Option(help="Training step to stand at.", show_default="the last")
    ] = None,
    max_error: Annotated[
        float, typer.Option(help="Largest expected error, as a share of the distance to the raw weights.")
    ] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make another average of a run from its snapshots."""
    if out is None:
        rows = synthesizable(archive, at)
        if as_json:
            print(json.dumps({"reachable": [row._asdict() for row in rows]}))
            return
        table = Table("half-life, steps", "expected error", "noise gain")
        for row in rows:
            table.add_row(f"{row.half_life:,.0f}", f"{row.error:.2%}", f"{row.noise_gain:.1f}")
        Console().print(table)
        return
    options = Options(half_life, decay, sigma_rel, last, shape)
    target = options.target()
    with progress("synthesizing") as moved:
        made = make(archive, target, at, last=last, max_error=max_error, out=out, progress=moved)
    figures = {"out": str(out), "step": made.header.step, "error": made.error, "noise_gain": made.noise_gain}
    if as_json:
        print(json.dumps(figures))
    else:
        say(
            f"wrote {out}: step {made.header.step}, expected error {made.error:.2%} of its distance from "
            f"the raw weights, noise gain {made.noise_gain:.1f}"
        )
