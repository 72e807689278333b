"""`polyak synthesize`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from polyak.archive.synthesis import Reach, synthesizable
from polyak.archive.synthesis import synthesize as make
from polyak.cli.console import progress, say, say_table
from polyak.cli.options import MAX_ERROR, Json, MaxError
from polyak.errors import ConfigError
from polyak.schedules import Anneal, Constant, Decay, HalfLife, Power

Shape: TypeAlias = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Options:
    """The target; exactly one of the first four is given."""

    half_life: float | None
    decay: float | None
    sigma_rel: float | None
    last: int | None
    shape: Shape

    def target(self) -> Decay:
        """The target as a decay.

        Raises:
            ConfigError: none or several were given.
        """
        given = [self.half_life, self.decay, self.sigma_rel, self.last]
        if sum(value is not None for value in given) != 1:
            raise ConfigError("give exactly one of --half-life, --decay, --sigma-rel and --last.")
        if self.half_life is not None:
            return HalfLife(steps=self.half_life)
        if self.decay is not None:
            return Constant(self.decay)
        if self.sigma_rel is not None:
            return Power(sigma_rel=self.sigma_rel)
        return Anneal(self.last or 0, self.shape)


def synthesize(
    archive: Annotated[Path, typer.Argument(help="Folder of snapshots that polyak.Archive wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; if omitted, list what can be made.")
    ] = None,
    half_life: Annotated[float | None, typer.Option(help="Half-life in training steps.")] = None,
    decay: Annotated[float | None, typer.Option(help="β of a plain average.")] = None,
    sigma_rel: Annotated[float | None, typer.Option(help="Width of a power-function average.")] = None,
    last: Annotated[int | None, typer.Option(help="Average the last N steps.")] = None,
    shape: Annotated[
        Shape, typer.Option(help="With --last: linear is their mean, cosine an annealed learning rate.")
    ] = "linear",
    at: Annotated[
        int | None, typer.Option(help="Training step of the average.", show_default="the last")
    ] = None,
    max_error: MaxError = MAX_ERROR,
    as_json: Json = False,
) -> None:
    """Make another average of a run from its snapshots."""
    if out is None:
        reach = synthesizable(archive, at)
        if as_json:
            print(json.dumps({"reachable": [row._asdict() for row in reach if row.error <= max_error]}))
        else:
            say_reach(reach, max_error)
        return
    options = Options(half_life, decay, sigma_rel, last, shape)
    target = options.target()
    with progress("synthesizing") as tick:
        made = make(archive, target, at, last=last, max_error=max_error, out=out, progress=tick)
    figures = {"out": str(out), "step": made.header.step, "error": made.error, "noise_gain": made.noise_gain}
    if as_json:
        print(json.dumps(figures))
    else:
        say(
            f"wrote {out}: step {made.header.step}, expected error {made.error:.2%} of its distance from "
            f"the raw weights, noise gain {made.noise_gain:.1f}"
        )


def say_reach(rows: Sequence[Reach], max_error: float = MAX_ERROR) -> None:
    """Print the half-lives that can be synthesised, and how many cannot."""
    near = [row for row in rows if row.error <= max_error]
    if near:
        cells = [(f"{row.half_life:,.4g}", f"{row.error:.2%}", f"{row.noise_gain:.1f}") for row in near]
        say_table(("half-life, steps", "expected error", "noise gain"), cells)
        say("expected error  as a share of the distance from the raw weights")
        say("noise gain      worst amplification of the snapshots' rounding errors; 1 is best")
    if away := [row.half_life for row in rows if row.error > max_error]:
        span = f"{len(away)} half-lives between {min(away):,.4g} and {max(away):,.4g} steps"
        say(f"left out        {span}: their error is above {max_error:.2%} (--max-error)")
