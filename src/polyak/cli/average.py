"""`polyak average`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from polyak.checkpoints import merge
from polyak.cli.progress import progress
from polyak.errors import ConfigError
from polyak.rules import Constant, HalfLife


@dataclass(frozen=True)
class Options:
    """What each checkpoint shall weigh; at most one of the three is given."""

    weights: str | None
    half_life: float | None
    decay: float | None

    def weighting(self) -> Any:
        """The ``weights`` of ``polyak.average``.

        Raises:
            ConfigError: several were given, or the numbers are none.
        """
        if sum(value is not None for value in (self.weights, self.half_life, self.decay)) > 1:
            raise ConfigError("give one of --weights, --half-life and --decay.")
        if self.half_life is not None:
            return HalfLife(steps=self.half_life)
        if self.decay is not None:
            return Constant(self.decay)
        if self.weights is None or self.weights == "uniform":
            return "uniform"
        try:
            return [float(number) for number in self.weights.split(",")]
        except ValueError as error:
            raise ConfigError(
                f"--weights {self.weights}: must be uniform, or numbers like 0.2,0.3,0.5."
            ) from error


def average(
    checkpoints: Annotated[list[str], typer.Argument(help="Files, folders of shards, or URLs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
    weights: Annotated[
        str | None, typer.Option(help="Like 0.2,0.3,0.5, one for each.", show_default="uniform")
    ] = None,
    half_life: Annotated[
        float | None, typer.Option(help="In training steps, over those the checkpoints were written at.")
    ] = None,
    decay: Annotated[float | None, typer.Option(help="The same, said as β per training step.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16, bfloat16 or float64.", show_default="the first one's"),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Of files with several sets of weights: raw, average, or a name.")
    ] = None,
    accumulate: Annotated[str, typer.Option(help="What to add in: float32 or float64.")] = "float32",
    max_shard_size: Annotated[str | None, typer.Option(help="Above it, write shards: 5GB.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Average checkpoints of any kind into one file."""
    weighting = Options(weights, half_life, decay).weighting()
    words: dict[str, Any] = {"dtype": dtype, "accumulate": accumulate}  # average checks them
    with progress("averaging") as moved:
        made = merge.average(
            checkpoints, out, weighting, max_shard_size=max_shard_size, part=part, progress=moved, **words
        )
    if as_json:
        figures = {"averaged": made.averaged, "copied": made.copied, "weights": made.weights}
        print(json.dumps({"out": str(out), "step": made.header.step, "run": made.header.run, **figures}))
        return
    shown = ", ".join(f"{weight:.4g}" for weight in made.weights)
    Console().print(
        f"wrote {out}: {len(made.averaged)} averaged with the weights {shown}; "
        f"{len(made.copied)} copied from {checkpoints[-1]}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
